"""How long a command says nothing: `python -m tools.silence modpo quickstart --fast`.

Its lines are passed on, each with the seconds since the start; in the end the longest silences are told, with the line
that each of them followed. The exit code is the command's.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise

TOLD = 3  # of the longest silences


def main(command: Sequence[str]) -> int:
    """Run a command and report its silences."""
    start, said = time.monotonic(), [(0.0, "the start")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            said.append((time.monotonic() - start, line.rstrip()))
            print(f"{said[-1][0]:8.1f}  {said[-1][1]}", flush=True)
    said.append((time.monotonic() - start, "the end"))
    for seconds, after in longest_silences(said)[:TOLD]:
        print(f"silent for {seconds:.1f} s after: {after}")
    return run.returncode


def longest_silences(said: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """(seconds, the line before it) of each silence, the longest first.

    Args:
        said: (seconds since the start, line) of each line.
    """
    return sorted(((after - at, line) for (at, line), (after, _) in pairwise(said)), reverse=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
