"""One side of the comparison, in a process of its own so that its peak memory is its own.

`python -m benchmarks.train_side modpo|trl ROWS.jsonl MODEL_FOLDER STEPS TRL_BATCH DTYPE` prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from benchmarks.own_process import tell

MAX_LENGTH = 2048


class StepClock(TrainerCallback):
    """Seconds of every optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def settings(steps: int, folder: str, dtype: str) -> dict[str, Any]:
    """What both sides share, where weights are in `dtype`."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "max_length": MAX_LENGTH,
        "beta": 0.1,
        "learning_rate": 5e-5,
        "bf16": dtype == "bfloat16",
        "activation_checkpointing": False,
        "use_cpu": not torch.accelerator.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
    }


def modpo_trainer(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], shared: dict[str, Any], _trl_batch: int
) -> Any:
    """Ours: every prompt of the step in one batch, read in parts of `max_packed_tokens`."""
    from modpo import MODPOConfig, MODPOTrainer

    prompts = len({json.dumps(row["prompt"]) for row in rows})
    args = MODPOConfig(
        weights={"preference": 1.0}, per_device_train_batch_size=prompts, cache_dir=shared["output_dir"], **shared
    )
    return MODPOTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora()
    )


def trl_trainer(model: Any, tokenizer: Any, rows: list[dict[str, Any]], shared: dict[str, Any], trl_batch: int) -> Any:
    """TRL's DPOTrainer, reference precomputed, the same pairs in an optimizer step."""
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(
        per_device_train_batch_size=trl_batch,
        gradient_accumulation_steps=-(-len(rows) // trl_batch),
        precompute_ref_log_probs=True,
        **shared,
    )
    return DPOTrainer(
        model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora()
    )


def lora() -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules="all-linear")


def main(side: str, rows_path: str, model_folder: str, steps: str, trl_batch: str, dtype: str) -> None:
    rows = [json.loads(line) for line in Path(rows_path).read_text("utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=getattr(torch, dtype))
    with tempfile.TemporaryDirectory() as folder:
        make = {"modpo": modpo_trainer, "trl": trl_trainer}[side]
        trainer = make(model, tokenizer, rows, settings(int(steps), folder, dtype), int(trl_batch))
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.train()
    seconds = statistics.median(clock.seconds)
    tokens = getattr(trainer, "tokens_read", trainer._total_train_tokens) / int(steps)
    result = {
        "dtype": dtype,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "pairs_per_second": len(rows) / seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_per_step": tokens,
        "step_seconds": [round(s, 3) for s in clock.seconds],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    tell(result)


if __name__ == "__main__":
    main(*sys.argv[1:])
