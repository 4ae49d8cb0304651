"""Optimizer steps of MODPOTrainer and of TRL's DPOTrainer, with adapters and of all weights."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gpu_check.machine import synchronize
from benchmarks.gpu_check.rows import MEASURED, Row
from benchmarks.gpu_check.setting import Setting
from benchmarks.preference_rows import qa_rows, single_pair_rows
from benchmarks.train_side import StepClock, lora, settings
from modpo import MODPOConfig, MODPOTrainer
from modpo.base.memory import peak_memory, reset_peak_memory
from modpo.models.folders import device

PROMPTS, SMALL_PAIRS = 16, 4
STEPS, SMALL_STEPS = 5, 2
TRL_BATCH = (
    (60e9, 8),
    (20e9, 4),
    (0, 2),
)  # pairs of a forward pass by the card's bytes: each reads 2 rows of 900 tokens


class ExactStepClock(StepClock):
    """Seconds of every optimizer step, the card's work done."""

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        synchronize()
        super().on_step_begin(*args, **kwargs)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        synchronize()
        super().on_step_end(*args, **kwargs)


def step(side: str, kind: str, setting: Setting) -> Iterator[Row]:
    """Train a few steps; the row tells the median step's pairs per second and the peak of memory."""
    rows = single_pair_rows(None, SMALL_PAIRS) if setting.small else qa_rows(None, PROMPTS)
    # All weights are trained in float32 with bfloat16 matmuls, adapters on a bfloat16 base: as TRL's own recipes do.
    dtype = torch.bfloat16 if kind == "lora" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=dtype)
    steps = SMALL_STEPS if setting.small else STEPS
    with tempfile.TemporaryDirectory(dir=setting.work) as folder:
        make = {"modpo": modpo_trainer, "trl": trl_trainer}[side]
        trainer = make(model, tokenizer, rows, settings(steps, folder), lora() if kind == "lora" else None)
        clock = ExactStepClock()
        trainer.add_callback(clock)
        reset_peak_memory()
        trainer.train()
    seconds = statistics.median(clock.seconds[1:])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    numbers = {"pairs_per_second": len(rows) / seconds, "peak_gb": peak_memory() / 1e9, "loss": losses}
    numbers |= {"step_seconds": clock.seconds, "pairs": len(rows)}
    result = (
        f"{numbers['pairs_per_second']:.1f} pairs/s, {numbers['peak_gb']:.2f} GB, "
        f"first loss {losses[0]:.4f}, last {losses[-1]:.4f}"
    )
    yield Row(f"{kind} {side}", "optimizer step", result, MEASURED, numbers)


lora_modpo, lora_trl = partial(step, "modpo", "lora"), partial(step, "trl", "lora")
full_modpo, full_trl = partial(step, "modpo", "full"), partial(step, "trl", "full")


def modpo_trainer(model: Any, tokenizer: Any, rows: list[dict[str, Any]], shared: dict[str, Any], peft: Any) -> Any:
    prompts = len({json.dumps(row["prompt"]) for row in rows})
    args = MODPOConfig(
        weights={"preference": 1.0}, per_device_train_batch_size=prompts, cache_dir=shared["output_dir"], **shared
    )
    return MODPOTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=peft
    )


def trl_trainer(model: Any, tokenizer: Any, rows: list[dict[str, Any]], shared: dict[str, Any], peft: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    batch = trl_batch()
    args = DPOConfig(
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=-(-len(rows) // batch),
        precompute_ref_log_probs=True,
        **shared,
    )
    return DPOTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=peft
    )


def trl_batch() -> int:
    """Pairs that TRL reads in one forward pass: as many as surely fit."""
    if device() == "cpu":
        return 2
    memory = torch.cuda.get_device_properties(0).total_memory
    return next(pairs for least, pairs in TRL_BATCH if memory >= least)
