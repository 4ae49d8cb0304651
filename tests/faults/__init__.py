"""Faults inflicted on real runs: what is published stays whole, and a retry ends as if nothing had happened.

server.py             imports everything once and forks for each run
experiment.py         the experiment that is run, and what a run leaves on disk
harness.py            a run with a fault and its retry, against an undisturbed one
invariants.py         what must hold after a fault (B, C, D, E of docs/reliability.md)
inflicted.py          faults that are set up inside a run before it starts
test_hooks.py         the hooks of modpo.base.fault_points
test_few_faults.py    a few faults of each kind: part of `make test`
test_every_fault.py   all of them: `make faults`
table.py              what `make faults` prints and writes into docs/reliability.md
stack.py              the same faults without modpo: `make stack`
demo_kills.py         the quickstart, killed ten times and finished: `make kills`
"""
