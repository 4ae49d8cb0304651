"""Forward and backward of one packed row, in variants: what the choices behind the packed forward are worth.

    python -m benchmarks.packed_step [--prompt 41] [--response 62] [--responses 4] [--groups 7] [--rounds 5]

The variants take turns, so that all of them see the same machine; the median of the rounds is printed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from transformers import AutoModelForCausalLM

from modpo.forward import branches
from modpo.forward.attention import packed_attention
from modpo.forward.logprobs import packed_logps, padded_logps
from modpo.forward.packability import require_packable
from modpo.forward.packing import PackedRow, pack
from modpo.models.embedded import fetch_model
from modpo.models.folders import default_cache_dir


@contextmanager
def branch_rows(rows: int) -> Iterator[None]:
    before = branches.BRANCH_ROWS
    branches.BRANCH_ROWS = rows
    branches.plan.cache_clear()
    try:
        yield
    finally:
        branches.BRANCH_ROWS = before
        branches.plan.cache_clear()


def variants(model: PeftModel) -> dict[str, Callable[[], Any]]:
    """As the trainer does it, and with one choice undone or changed."""
    as_trained = disable_input_dtype_casting
    return {
        "as trained": lambda: as_trained(model),
        "adapters cast their input": nullcontext,
        "branches of 64 rows": lambda: _both(as_trained(model), branch_rows(64)),
        "branches of 256 rows": lambda: _both(as_trained(model), branch_rows(256)),
    }


@contextmanager
def _both(first: Any, second: Any) -> Iterator[None]:
    with first, second:
        yield


def step(model: PeftModel, logps: Callable[[], torch.Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        total = logps().sum()
    total.backward()
    model.zero_grad()
    return time.perf_counter() - started


def made_row(options: argparse.Namespace) -> tuple[list[list[int]], list[list[list[int]]]]:
    rng = random.Random(0)

    def text(length: int) -> list[int]:
        return [rng.randrange(100, 40_000) for _ in range(length)]

    prompts = [text(options.prompt) for _ in range(options.groups)]
    return prompts, [[text(options.response) for _ in range(options.responses)] for _ in prompts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"prompt": 41, "response": 62, "responses": 4, "groups": 7, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    base = AutoModelForCausalLM.from_pretrained(fetch_model(default_cache_dir(), progress=print), dtype=torch.bfloat16)
    require_packable(base)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear")).train()
    prompts, responses = made_row(options)
    row: PackedRow = pack(prompts, responses)
    seconds: dict[str, list[float]] = {}
    for _ in range(options.rounds + 1):
        for name, variant in variants(model).items():
            with variant(), packed_attention(base):
                seconds.setdefault(name, []).append(step(model, lambda: packed_logps(model, row)))
        padded = [
            step(model, lambda p=p, r=r: padded_logps(model, [p], [r])) for p, r in zip(prompts, responses, strict=True)
        ]
        seconds.setdefault("padded", []).append(sum(padded))
    print(f"{row.layout.length} packed tokens, {row.responses} responses")
    for name, values in seconds.items():
        median = statistics.median(values[1:])  # the first round warms up
        print(f"{name:28} {median:6.2f} s  {row.layout.length / median:5.0f} packed tokens/s")


if __name__ == "__main__":
    main()
