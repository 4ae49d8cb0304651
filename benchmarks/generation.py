"""Sampling with `modpo.forward.generate` against `generate` of transformers: the same prompts, four answers to each.

    python -m benchmarks.generation [--data FOLDER] [--runs 3] [--only short|pairs|qa] [--dtypes bfloat16 float32]

Both sides sample from softmax(logits) alone, in processes of their own, in turn, in each number format; each side's
best one counts. Answers are of one distribution (tests/forward/test_decoding.py), so a rate is tokens of answers, up to
their end, a second; the median of several runs. Ours come with their log-probs. Beside them: how long reading the
answers once more takes, which is what measuring a policy adds. Writes benchmarks/results/generation.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.own_process import result_of, tell
from benchmarks.preference_rows import qa_rows, single_pair_rows
from benchmarks.trl import machine

RESULTS = Path(__file__).parent / "results" / "generation.json"
ANSWERS = 4  # to each prompt
# Prompts, and tokens of an answer at most.
CASES = {"short": (48, 48), "pairs": (24, 64), "qa": (6, 64)}
WHAT = {
    "short": "prompts of the quickstart",
    "pairs": "prompts of hh-rlhf's shape",
    "qa": "prompts of QA-Feedback's shape",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="see benchmarks.trl; default: made rows")
    parser.add_argument("--runs", type=int, default=3, help="samplings a side, of which the median counts")
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=("bfloat16", "float32"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.is_file() else {"cases": {}}
    for case in CASES:
        if options.only in (None, case):
            results["cases"][case] = compare(case, options)
            results["speed_ratio"] = min(one["speed_ratio"] for one in results["cases"].values())
            results["rows"] = "real" if options.data else "made"
            results["command"] = "python -m benchmarks.generation" + (" --data FOLDER" if options.data else "")
            results["machine"] = machine()
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(results, indent=2) + "\n")


def compare(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in every number format, in turn; prints and returns the ratios."""
    sides: dict[str, dict[str, Any]] = {}
    for dtype in options.dtypes:
        for side in ("modpo", "transformers"):
            arguments = (side, case, dtype, str(options.runs), *([str(options.data)] if options.data else []))
            found = result_of(f"{case}, {side}, {dtype}", "benchmarks.generation", *arguments)
            if side not in sides or found["tokens_per_second"] > sides[side]["tokens_per_second"]:
                sides[side] = found
    ours, theirs = sides["modpo"], sides["transformers"]
    result = {
        "what": WHAT[case],
        "speed_ratio": ours["tokens_per_second"] / theirs["tokens_per_second"],
        "memory_ratio": ours["peak_gb"] / theirs["peak_gb"],
        "measuring_per_sampling": 1 + ours["reading_seconds"] / ours["seconds"],
        "measuring_per_transformers_sampling": (ours["seconds"] + ours["reading_seconds"]) / theirs["seconds"],
        **sides,
    }
    for side, r in sides.items():
        print(
            f"{case:6} {side:13} {r['dtype']:9} {r['tokens_per_second']:6.0f} tokens/s, {r['seconds']:.1f} s for "
            f"{r['answers']} answers to prompts of {r['prompt_tokens']:.0f} tokens, {r['peak_gb']:.1f} GB"
        )
    print(
        f"{case:6} {result['speed_ratio']:.1f} times the speed; with the reference's reading measuring takes "
        f"{result['measuring_per_sampling']:.2f} of sampling, {result['measuring_per_transformers_sampling']:.2f} of "
        "the peer's sampling",
        flush=True,
    )
    return result


# --- one side -----------------------------------------------------------------------------------------------


def run_side(side: str, case: str, dtype: str, runs: str, data: str | None = None) -> None:
    """Sample several times, and tell the rate."""
    import resource

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from modpo.models.embedded import fetch_model
    from modpo.models.folders import default_cache_dir

    folder = fetch_model(default_cache_dir(), progress=print)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # As it was loaded: with weights that need no gradient `generate` of transformers copies the head for every answer.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    prompts = prompts_of(case, tokenizer, Path(data) if data else None)
    sample = {"modpo": sample_ours, "transformers": sample_theirs}[side]
    longest = CASES[case][1]
    sample(model, tokenizer, prompts[:2], 2)  # what is made at the first call
    seconds, tokens, reading = [], [], []
    for _ in range(int(runs)):
        started = time.perf_counter()
        answers = sample(model, tokenizer, prompts, longest)
        seconds.append(time.perf_counter() - started)
        tokens.append(sum(len(ids) for group in answers for ids in group))
        if side == "modpo":
            reading.append(reading_seconds(model, prompts, answers))
    result = {
        "dtype": dtype,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "tokens_per_second": statistics.median(n / s for n, s in zip(tokens, seconds, strict=True)),
        "seconds": statistics.median(seconds),
        "runs": [round(s, 2) for s in seconds],
        "answers": len(prompts) * ANSWERS,
        "answer_tokens": statistics.median(tokens),
        "prompt_tokens": sum(map(len, prompts)) / len(prompts),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    tell({**result, "reading_seconds": statistics.median(reading)} if reading else result)


def prompts_of(case: str, tokenizer: Any, data: Path | None) -> list[list[int]]:
    """Token ids of a case's prompts."""
    from modpo import quickstart
    from modpo.data.tokens import tokenize_prompt

    count = CASES[case][0]
    if case == "short":
        lines = (quickstart.HERE / "prompts.jsonl").read_text("utf-8").splitlines()[:count]
        return [tokenize_prompt(json.loads(line)["prompt"], tokenizer) for line in lines]
    rows = qa_rows(data, count) if case == "qa" else single_pair_rows(data, count)
    texts = {json.dumps(row["prompt"]): row["prompt"] for row in rows}
    return [tokenize_prompt(prompt, tokenizer) for prompt in list(texts.values())[:count]]


def sample_ours(model: Any, tokenizer: Any, prompts: list[list[int]], longest: int) -> list[list[list[int]]]:
    from modpo.forward.generate import generate
    from modpo.forward.sampled import SamplingSettings

    settings = SamplingSettings([tokenizer.eos_token_id], longest, ANSWERS)
    given = generate(model, tokenizer, prompts, settings, packing=True)
    return [[answer.ids for answer in group] for group in given]


def sample_theirs(model: Any, tokenizer: Any, prompts: list[list[int]], longest: int) -> list[list[list[int]]]:
    """All answers in one batch, padded on the left, as many a batch as ours makes at a time."""
    import torch

    width, pad, end = max(map(len, prompts)), tokenizer.pad_token_id, tokenizer.eos_token_id
    pad = end if pad is None else pad
    out = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=ANSWERS,
        max_new_tokens=longest,
        eos_token_id=end,
        pad_token_id=pad,
    )
    answers = [ids[: ids.index(end) + 1] if end in ids else ids for ids in out[:, width:].tolist()]
    return [answers[i : i + ANSWERS] for i in range(0, len(answers), ANSWERS)]


def reading_seconds(model: Any, prompts: list[list[int]], answers: list[list[list[int]]]) -> float:
    """Of the log-probs of the answers under another model of the same size."""
    from modpo.forward.frozen import logps_by_group

    started = time.perf_counter()
    for _ in logps_by_group(model, prompts, answers, packing=True):
        pass
    return time.perf_counter() - started


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("modpo", "transformers"):
        run_side(*sys.argv[1:])
    else:
        main()
