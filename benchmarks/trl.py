"""MODPOTrainer against TRL's DPOTrainer: the same rows, model, adapters and pairs per optimizer step.

    python -m benchmarks.trl [--data FOLDER] [--steps 3] [--only qa|pairs]

Both sides run in this one command, each in a process of its own, in turn. With one objective MODPO is DPO, so both
compute the same loss; the first loss of both is printed as proof. Both take the number format that this machine
multiplies faster, which is the faster one for both. Writes benchmarks/results/trl.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.own_process import result_of
from benchmarks.preference_rows import qa_rows, single_pair_rows
from modpo.models.embedded import fetch_model
from modpo.models.folders import default_cache_dir
from modpo.models.matmul_speed import matmul_speed

RESULTS = Path(__file__).parent / "results" / "trl.json"
QA_PROMPTS, HH_PAIRS = 3, 32
# Pairs that TRL reads in one forward pass: with its default of 8, either case needs more than 24 GB here.
TRL_BATCH = {"qa": 2, "pairs": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="folder with dev_feedback.json and harmless-base/test.jsonl.gz; default: made rows"
    )
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps a side, of which the median counts")
    parser.add_argument("--only", choices=("qa", "pairs"))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="of both sides; default: the faster one")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    model = fetch_model(default_cache_dir(), progress=print)
    dtype = options.dtype or matmul_speed(default_cache_dir()).faster
    cases = {"qa": qa_rows(options.data, QA_PROMPTS), "pairs": single_pair_rows(options.data, HH_PAIRS)}
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.is_file() else {}
    for case, rows in cases.items():
        if options.only in (None, case):
            results[case] = compare(case, rows, model, options.steps, dtype)
            results["rows"] = "real" if options.data else "made"
            results["command"] = " ".join(["python -m benchmarks.trl", *(["--data FOLDER"] if options.data else [])])
            results["machine"] = machine()
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(results, indent=2) + "\n")  # a case that fails costs only itself


def compare(case: str, rows: list[dict[str, Any]], model: Path, steps: int, dtype: str) -> dict[str, Any]:
    """Both sides on the same rows, ours first; prints and returns the ratios."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    ours, theirs = (run_side(side, file.name, model, steps, TRL_BATCH[case], dtype) for side in ("modpo", "trl"))
    Path(file.name).unlink()
    result = {
        "pairs": len(rows),
        "trl_batch": TRL_BATCH[case],
        "speed_ratio": ours["pairs_per_second"] / theirs["pairs_per_second"],
        "memory_ratio": ours["peak_gb"] / theirs["peak_gb"],
        "modpo": ours,
        "trl": theirs,
    }
    for side in ("modpo", "trl"):
        r = result[side]
        print(
            f"{case:6} {side:6} {r['pairs_per_second']:.3f} pairs/s, {r['tokens_per_second']:.0f} tokens/s "
            f"({r['tokens_per_step']:.0f} a step), {r['peak_gb']:.1f} GB, first loss {r['loss'][0]:.4f}"
        )
    print(
        f"{case:6} {result['speed_ratio']:.1f} times the speed, {result['memory_ratio']:.2f} of the memory", flush=True
    )
    return result


def run_side(side: str, rows: str, model: Path, steps: int, trl_batch: int, dtype: str) -> dict[str, Any]:
    return result_of(side, "benchmarks.train_side", side, rows, str(model), str(steps), str(trl_batch), dtype)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    packages = ("modpo", "torch", "transformers", "trl", "peft")
    return {
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
