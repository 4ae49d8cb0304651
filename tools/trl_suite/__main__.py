"""`python -m tools.trl_suite --tests TRL/tests`: TRL's tests with both trainers, and a table of them.

Prints a line a test, what failed with the last line of its error, and how many of the tests that pass with TRL's
trainer pass with ours. An error that says what to do is marked `clear`. Needs no network, and two minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tools.trl_suite.plugin import PLAN, PUT_IN_PLACE, End, Plan
from tools.trl_suite.stand_ins import hub_cache, write_stand_ins

ROOT = Path(__file__).parents[2]
OUTCOMES = ("passed", "failed", "skipped")


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    tests = options.tests / "test_dpo_trainer.py" if options.tests.is_dir() else options.tests
    with tempfile.TemporaryDirectory() as scratch:
        write_stand_ins(Path(scratch))
        ends = {
            trainer: run(tests, trainer, Path(scratch), options.seconds, options.gibibytes, options.only)
            for trainer in options.trainers
        }
    if options.base:
        ends = {"trl": _kept(options.base, "trl")} | ends
    print("\n".join(table(ends)))
    if options.output:
        found = {trainer: [asdict(end) for end in of.values()] for trainer, of in ends.items()}
        options.output.write_text(json.dumps(found, indent=1))
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tools.trl_suite", description=__doc__)
    parser.add_argument("--tests", type=Path, required=True, help="tests folder of a checkout of TRL, or its file")
    parser.add_argument("--trainers", nargs="+", choices=list(PUT_IN_PLACE), default=list(PUT_IN_PLACE))
    parser.add_argument("--only", help="run the tests that this expression of pytest's -k selects")
    parser.add_argument("--base", type=Path, help="what --output wrote: TRL's results are taken from it, not run again")
    parser.add_argument("--output", type=Path, help="write how each test ended as JSON")
    parser.add_argument("--seconds", type=int, default=120, help="that a test may take")
    parser.add_argument("--gibibytes", type=int, default=12, help="of address space that the tests may take")
    return parser.parse_args(argv)


def run(tests: Path, trainer: str, scratch: Path, seconds: int, gibibytes: int, only: str | None) -> dict[str, End]:
    """How each test ends with a trainer, by its name."""
    results = scratch / f"{trainer}.jsonl"
    results.touch()
    plan = Plan(trainer, str(scratch), str(results), seconds, gibibytes)
    environment = {
        PLAN: json.dumps(asdict(plan)),
        "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT), str(ROOT / "src")]).strip(
            os.pathsep
        ),
        "HF_HOME": str(scratch / "huggingface"),
        "HF_HUB_CACHE": str(hub_cache(scratch)),
        "HF_HUB_OFFLINE": "1",
        "MODPO_CACHE": str(scratch / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    quiet = ["-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-p", "no:warnings"]
    command = [sys.executable, "-m", "pytest", "-p", "tools.trl_suite.plugin", *quiet, f"--rootdir={tests.parent}"]
    command += [f"--basetemp={scratch / f'tests-of-{trainer}'}", str(tests), *(["-k", only] if only else [])]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, cwd=scratch)
    if done.returncode not in (0, 1):  # 1: tests failed, which is what we are here to see
        print(f"pytest ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}", file=sys.stderr)
    return {end.test: end for end in map(_read, results.read_text().splitlines())}


def _read(line: str) -> End:
    return End(**json.loads(line))


def _kept(path: Path, trainer: str) -> dict[str, End]:
    return {end["test"]: End(**end) for end in json.loads(path.read_text())[trainer]}


def table(ends: dict[str, dict[str, End]]) -> Iterable[str]:
    """A line a test, then the totals."""
    tests = list(dict.fromkeys(name for of in ends.values() for name in of))
    width = max(map(len, tests), default=0)
    yield f"{'test':{width}}  " + "  ".join(f"{trainer:7}" for trainer in ends) + "  clear  last line"
    for test in tests:
        found = [of[test] if test in of else End(test, "not run", "the run ended before it") for of in ends.values()]
        last = found[-1]
        clear = "clear" if last.clear else ""
        yield f"{test:{width}}  " + "  ".join(f"{end.outcome:7}" for end in found) + f"  {clear:5}  {last.line}"
    for trainer, of in ends.items():
        count = Counter(end.outcome for end in of.values())
        yield f"{trainer}: {len(of)} tests, " + ", ".join(f"{count[outcome]} {outcome}" for outcome in OUTCOMES)
    if set(ends) == set(PUT_IN_PLACE):
        yield from _compared(ends["trl"], ends["modpo"])


def _compared(trl: dict[str, End], modpo: dict[str, End]) -> Iterable[str]:
    base = [test for test, end in trl.items() if end.outcome == "passed"]
    ours = [modpo[test] for test in base if test in modpo]
    passed = sum(end.outcome == "passed" for end in ours)
    clear = sum(end.clear for end in ours if end.outcome == "failed")
    yield f"of {len(base)} that pass with TRL, {passed} pass with MODPOTrainer"
    yield f"of the {len(base) - passed} others, {clear} end in a line that says what to do"


if __name__ == "__main__":
    sys.exit(main())
