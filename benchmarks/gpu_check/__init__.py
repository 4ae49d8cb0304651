"""What has to be seen on a GPU, as one table: run by `scripts/gpu_check.sh`, see docs/commands.md.

Each part runs in a process of its own, under a time limit of its own, and prints its rows as it finds them. A part that
fails, hangs or lacks something is a row of the table and stops no other.
"""
