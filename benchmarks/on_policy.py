"""The trainer of `morlhf` against TRL's RLOOTrainer as it is: the same model, adapter, prompts, rewards and settings.

    python -m benchmarks.on_policy [--steps 3] [--answers 64]

Both sides run in this one command, each in a process of its own, in turn. They sample their own answers, so their
rewards differ by chance; that both learn the same from the same answers is what
tests/training/test_on_policy.py shows. Writes benchmarks/results/on_policy.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.own_process import result_of, tell
from benchmarks.trl import machine
from modpo.models.embedded import fetch_model
from modpo.models.folders import default_cache_dir

RESULTS = Path(__file__).parent / "results" / "on_policy.json"
PROMPTS = Path(__file__).parents[1] / "src" / "modpo" / "quickstart" / "prompts.jsonl"
SIDES = ("modpo", "trl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="steps a side, of which the median counts")
    parser.add_argument("--answers", type=int, default=64, help="answers in a step, four to a prompt")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        tell(measure(options.side, options.steps, options.answers))
        return
    fetch_model(default_cache_dir(), progress=print)
    sizes = ("--steps", str(options.steps), "--answers", str(options.answers))
    result: dict[str, Any] = {side: result_of(side, "benchmarks.on_policy", "--side", side, *sizes) for side in SIDES}
    result["speed_ratio"] = result["trl"]["seconds"] / result["modpo"]["seconds"]
    result["memory_ratio"] = result["modpo"]["peak_gb"] / result["trl"]["peak_gb"]
    result["command"] = f"python -m benchmarks.on_policy --steps {options.steps} --answers {options.answers}"
    result["machine"] = machine()
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    for side in SIDES:
        r = result[side]
        print(f"{side:6} {r['seconds']:.1f} s a step, {r['peak_gb']:.1f} GB, rewards {r['rewards']}")
    print(f"{result['speed_ratio']:.1f} times the speed, {result['memory_ratio']:.2f} of the memory")


def measure(side: str, steps: int, answers: int) -> dict[str, Any]:
    """Train for some steps; seconds of the median step, and what the rewards were."""
    from benchmarks.train_side import StepClock

    with tempfile.TemporaryDirectory() as folder:
        trainer = new_trainer(side, folder, steps, answers)
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.train()
    return {
        "seconds": statistics.median(clock.seconds),
        "step_seconds": [round(s, 3) for s in clock.seconds],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "rewards": [round(entry["reward"], 2) for entry in trainer.state.log_history if "reward" in entry],
    }


def new_trainer(side: str, folder: str, steps: int, answers: int) -> Any:
    """A trainer on the prompts of the quickstart, answers of 48 tokens as in recipes/controlled, in groups of four."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import RLOOConfig, RLOOTrainer

    from benchmarks.train_side import lora
    from modpo.training.on_policy import OnPolicyRLOO, Reading

    path = fetch_model(default_cache_dir(), progress=print)
    shared = {
        "args": RLOOConfig(
            output_dir=folder,
            max_steps=steps,
            learning_rate=3e-3,
            beta=0.1,
            num_generations=4,
            per_device_train_batch_size=answers,
            max_completion_length=48,
            temperature=1.0,
            top_k=0,
            normalize_advantages=False,
            bf16=True,
            use_cpu=not torch.accelerator.is_available(),
            activation_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            logging_steps=1,
        ),
        "reward_funcs": brevity,
        "train_dataset": Dataset.from_list([json.loads(line) for line in PROMPTS.read_text("utf-8").splitlines()]),
        "processing_class": AutoTokenizer.from_pretrained(path),
        "peft_config": lora(),
    }
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    if side == "trl":
        return RLOOTrainer(model, **shared)
    return OnPolicyRLOO(model, reading=Reading(max_prompt_length=208, conversational=True), **shared)


def brevity(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """A reward that takes no time, so that what is timed is the trainers."""
    return [-0.3 * len(answer[-1]["content"].split()) for answer in completions]


if __name__ == "__main__":
    main()
