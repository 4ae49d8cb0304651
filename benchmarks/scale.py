"""Many rows: `modpo train` on made rows and a tiny model, from nothing and then with everything in the cache.

    python -m benchmarks.scale [--answers 10000 100000 1000000] [--layout groups|pairs] [--folder FOLDER]

Each start is the whole command in a process of its own, so that its peak memory is its own: rows are read and grouped,
tokenized, read by the reference and scored by a column and by a function, a trainer is made and takes one step. The
second start is the same command again, with another folder for the policy. What a start takes whatever the number of
rows is measured with `FEW` answers. Writes benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.own_process import result_of
from benchmarks.scale_rows import LAYOUTS, build_model, write_rows
from benchmarks.trl import machine

RESULTS = Path(__file__).parent / "results" / "scale.json"
FEW = 400  # answers
DTYPE = "float32"
EXPERIMENT = """
model: {{model_name_or_path: {folder}/model, dtype: {dtype}}}
lora: {{r: 4}}
data: {{path: {folder}/rows.jsonl, eval_prompts: 64, max_length: 128}}
objectives:
  liked: {{pairs: data, reward: {{column: liked}}, calibration: bradley_terry}}
  concise: {{reward: modpo.rewards.text:word_count, maximize: false}}
training: {{per_device_train_batch_size: 8, max_steps: 1}}
output_dir: {folder}/run
cache_dir: {folder}/cache
"""
WEIGHTS = "liked=0.5,concise=0.5"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default="groups")
    parser.add_argument("--folder", type=Path, help="where rows and cache go; default: the system's temporary folder")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.is_file() else {}
    few = measure(options.layout, FEW, options.folder)
    for answers in options.answers:
        found = with_costs(answers, measure(options.layout, answers, options.folder), few)
        kind = "rows" if options.layout == "groups" else f"rows_as_{options.layout}"
        results.setdefault(kind, {})[str(answers)] = found
        costs = [size["cpu_microseconds_per_answer"]["first"] for size in results[kind].values()]
        results |= {
            f"few_{kind}": {"answers": FEW, **few},
            f"largest_cost_over_smallest_of_{kind}": max(costs) / min(costs),
        }
        results |= {"command": "python -m benchmarks.scale", "dtype": DTYPE, "machine": machine()}
        results["capability"] = results["machine"]["capability"]
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")  # a size that fails costs only itself
        show(answers, found)


def measure(layout: str, answers: int, parent: Path | None) -> dict[str, Any]:
    """Two starts on so many answers."""
    folder = Path(tempfile.mkdtemp(prefix=f"scale-{answers}-", dir=parent))
    try:
        write_rows(folder / "rows.jsonl", layout, answers)
        build_model(folder / "model")
        experiment = folder / "experiment.yaml"
        experiment.write_text(EXPERIMENT.format(folder=folder, dtype=DTYPE))
        starts = {name: start(name, answers, experiment) for name in ("first", "second")}
        return {**starts, "row_bytes": (folder / "rows.jsonl").stat().st_size, "stages": stages(folder / "cache")}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start(name: str, answers: int, experiment: Path) -> dict[str, Any]:
    output = str(experiment.parent / name)
    side = f"the {name} start on {answers} answers"
    return result_of(side, "benchmarks.scale_side", str(experiment), WEIGHTS, output, str(time.time()))


def stages(cache: Path) -> dict[str, float]:
    """Seconds of the first start that each kind of column of the cache took."""
    seconds: dict[str, float] = {}
    for manifest in cache.glob("scored/*/manifest.json"):
        read = json.loads(manifest.read_text())
        for shard in read.get("shards", {}).values():
            kind = manifest.parent.name.partition("-")[0]
            seconds[kind] = round(seconds.get(kind, 0.0) + shard["cost"]["seconds"], 2)
    return seconds


def with_costs(answers: int, found: dict[str, Any], few: dict[str, Any]) -> dict[str, Any]:
    """What was measured, and what an answer costs beyond a start with few of them."""
    more = answers - FEW
    starts, ends = ("first", "second"), "first_step_ends_cpu_seconds"
    cpu = {name: found[name][ends] - few[name][ends] for name in starts}
    return {
        "peak_gb": max(found[name]["peak_gb"] for name in starts),
        "first_start_seconds": found["first"]["first_step_ends_seconds"],
        "second_start_seconds": found["second"]["first_step_ends_seconds"],
        "answers_per_second": round(
            more / (found["first"]["first_step_ends_seconds"] - few["first"]["first_step_ends_seconds"])
        ),
        "cpu_microseconds_per_answer": {name: round(1e6 * seconds / more, 1) for name, seconds in cpu.items()},
        **found,
    }


def show(answers: int, found: dict[str, Any]) -> None:
    cost = found["cpu_microseconds_per_answer"]
    print(
        f"{answers:>9,} answers: {found['answers_per_second']:,} a second, first step after "
        f"{found['first_start_seconds']:.1f} s, of a second start after {found['second_start_seconds']:.1f} s; "
        f"an answer costs {cost['first']:.0f} us of processor, {cost['second']:.1f} us in a second start; "
        f"peak {found['peak_gb']:.2f} GB",
        flush=True,
    )


if __name__ == "__main__":
    main()
