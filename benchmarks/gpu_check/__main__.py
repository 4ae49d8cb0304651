"""`python -m benchmarks.gpu_check`: every part in turn, then one table and one file of JSON.

Ends with 0 where all that ran held, with 1 where something failed or nothing ran.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.gpu_check.part import PARTS
from benchmarks.gpu_check.rows import FAILED, HELD, MEASURED, Row, judged, table
from benchmarks.gpu_check.run_part import run_part
from benchmarks.gpu_check.setting import Setting

WORK = Path(".cache/gpu_check/work")
OUTPUT = Path(".cache/gpu_check/gpu.json")
# Seconds a part may take; the demo has the rest, and as much as is kept for it here.
LIMITS = {"machine": 90, "attention": 120, "packing": 60, "sampling": 60}
LIMIT, FOR_THE_DEMO = 60, 150
WITHOUT_CARD = 2  # times as long, where a CPU does the work
# Where the trainers' ratios must be at least, on a card.
SPEED_RATIO, MEMORY_RATIO = 1.0, 1.0


def main() -> int:
    options = parsed()
    ends = time.monotonic() + options.seconds
    started = time.monotonic()
    small = options.small or not torch.cuda.is_available()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    setting = Setting(str(options.work.resolve()), small, str(options.model.resolve()) if options.model else "")
    rows: list[Row] = []
    for name in PARTS:
        if name != "machine" and options.parts and name.split()[0] not in options.parts:
            continue
        seconds = seconds_for(name, ends - time.monotonic(), options, small)
        print(f"{name} (at most {max(seconds, 0):.0f} s)", flush=True)
        for row in run_part(name, setting, seconds):
            show(row, rows)
            if "folder" in row.numbers:
                setting = replace(setting, model=row.numbers["folder"])
        for row in ratios(name, rows):
            show(row, rows)
    write(options.output, rows, small, time.monotonic() - started)
    print(f"\n{table(rows)}\n\n{verdict(rows)}; {options.output} has the numbers")
    return int(not sound(rows))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480, help="after which all is cut off")
    parser.add_argument("--small", action="store_true", help="small sizes; the default without a GPU")
    parser.add_argument("--model", type=Path, help="folder of a model to read in place of the embedded one")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=[], help="of " + ", ".join(words()))
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the numbers go, JSON")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for what the parts write; emptied first")
    options = parser.parse_args()
    if unknown := sorted({*options.parts} - {*words()}):
        parser.error(f"--parts: no part is called {', '.join(unknown)}; fix: choose of {', '.join(words())}")
    return options


def words() -> list[str]:
    """The parts by the first word of their names: `lora` is both sides."""
    return list(dict.fromkeys(name.split()[0] for name in PARTS))


def wanted(options: argparse.Namespace) -> list[str]:
    return options.parts or words()


def seconds_for(name: str, left: float, options: argparse.Namespace, small: bool) -> float:
    """How long a part may take, of the seconds that are left for all."""
    if name == "demo":
        return left
    kept = FOR_THE_DEMO if "demo" in wanted(options) else 0
    return min(LIMITS.get(name, LIMIT) * (WITHOUT_CARD if small else 1), left - kept)


def show(row: Row, rows: list[Row]) -> None:
    rows.append(row)
    print(f"  {row.status}: {row.check}: {row.result}", flush=True)


def ratios(name: str, rows: list[Row]) -> list[Row]:
    """After the second side of a training: ours against TRL's, and that both began with the same loss."""
    kind, _, side = name.partition(" ")
    found = {row.part: row.numbers for row in rows if "pairs_per_second" in row.numbers}
    if side != "trl" or not {f"{kind} modpo", f"{kind} trl"} <= found.keys():
        return []
    ours, theirs = found[f"{kind} modpo"], found[f"{kind} trl"]
    speed = ours["pairs_per_second"] / theirs["pairs_per_second"]
    memory = ours["peak_gb"] / theirs["peak_gb"]
    apart = abs(ours["loss"][0] - theirs["loss"][0])
    return [
        judged(kind, "speed over TRL's", f"{speed:.1f}", speed >= SPEED_RATIO, speed_ratio=speed),
        judged(kind, "memory over TRL's", f"{memory:.2f}", memory <= MEMORY_RATIO, memory_ratio=memory),
        judged(kind, "the first losses agree", f"{apart:.1e} apart", apart < 0.01, apart=apart),
    ]


def sound(rows: list[Row]) -> bool:
    """Whether something ran and nothing failed."""
    return any(row.status in (HELD, MEASURED) for row in rows) and all(row.status != FAILED for row in rows)


def verdict(rows: list[Row]) -> str:
    counts = {status: sum(row.status == status for row in rows) for status in ("held", "failed", "missing")}
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def write(path: Path, rows: list[Row], small: bool, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"small": small, "seconds": seconds, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
