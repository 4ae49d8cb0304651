"""A run that is killed with SIGKILL again and again at random moments, then finished, against an undisturbed one.

    .venv/bin/python tests/faults/demo_kills.py

The command is `modpo quickstart --fast` unless another one is named; OUTPUT in it stands for the folder of the run.
Each of the two runs has a cache of its own, but for the models in it. Leaves with 0 only if every number of the two
`front.json` is the same, costs aside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

COMMAND = ["quickstart", "--fast", "--output", "OUTPUT"]
COSTS = ("cost", "continuous", "sha256")  # seconds and tokens of training; the seal, which holds a hash of them too


class Run:
    """A command that is started as often as it takes, with a folder and a cache of its own."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.output, self.cache = folder / "run", folder / "cache"
        self.cache.mkdir(parents=True)
        words = [str(self.output) if word == "OUTPUT" else word for word in command]
        self._command = [sys.executable, "-m", "modpo", *words]
        self._log = folder / "log"

    def go(self, seconds: float | None = None) -> int:
        """Run to the end, or until it is killed after some seconds. The exit code; -9 when it was killed."""
        with self._log.open("a") as log:
            process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env={**os.environ, "MODPO_CACHE": str(self.cache)}
            )
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()

    def finish(self) -> None:
        """Run to the end.

        Raises:
            SystemExit: it did not end well.
        """
        if code := self.go():
            sys.exit(f"left with {code}: see {self._log}")

    def numbers(self) -> Any:
        """What `front.json` says, costs aside."""
        return without_costs(json.loads((self.output / "front.json").read_text("utf-8")))


def without_costs(value: Any) -> Any:
    """A JSON value without the fields of `COSTS`."""
    if isinstance(value, dict):
        return {key: without_costs(item) for key, item in value.items() if key not in COSTS}
    return [without_costs(item) for item in value] if isinstance(value, list) else value


def count(value: Any) -> int:
    """How many numbers a JSON value holds."""
    if isinstance(value, dict | list):
        return sum(map(count, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def main() -> None:
    """Both runs, and whether they end alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("command", nargs="*", default=COMMAND, help="arguments of modpo; default: %(default)s")
    args = parser.parse_args()
    folder, rng = Path(tempfile.mkdtemp(prefix="kills-")), Random(args.seed)

    undisturbed = Run(folder / "undisturbed", args.command)
    began = time.monotonic()
    undisturbed.finish()
    took = time.monotonic() - began
    print(f"undisturbed: {took:.0f} s", flush=True)

    killed, kills = Run(folder / "killed", args.command), 0
    if (models := undisturbed.cache / "models").is_dir():
        shutil.copytree(models, killed.cache / "models")
    while kills < args.kills:
        seconds = rng.uniform(0, 2 * took / args.kills)
        if killed.go(seconds) != -9:
            sys.exit(f"ended by itself after {kills} kills, before {seconds:.1f} s: see {folder}")
        kills += 1
        print(f"kill {kills} after {seconds:.1f} s", flush=True)
    killed.finish()

    same = killed.numbers() == undisturbed.numbers()
    print(f"{kills} kills; {count(killed.numbers())} numbers in front.json: {'equal' if same else 'not equal'}")
    if not same:
        sys.exit(f"the two differ: see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
