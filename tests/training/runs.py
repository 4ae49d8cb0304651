"""Preference rows for the trainers, and two runs compared: losses, trained weights, log-probs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from modpo.forward.logprobs import padded_logps
from modpo.training.trainer import MODPOTrainer

LORA = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def preference_rows() -> Dataset:
    """8 prompts with 1, 2 or 3 pairs each: 15 rows. The margin objective counts, below 0, the letters of a response."""
    subjects = ["rain", "a clock", "salt", "the moon", "tea", "a bridge", "wool", "maps"]
    rows = []
    for p, subject in enumerate(subjects):
        for i in range(1 + p % 3):
            chosen = f"{subject} is useful, in {i + 1} ways" + " at least" * i
            rejected = f"no idea{'!' * (i + p)}"
            rows.append(
                {
                    "prompt": f"What is {subject} good for? ",
                    "chosen": chosen,
                    "rejected": rejected,
                    "chosen_short": -len(chosen) / 20,
                    "rejected_short": -len(rejected) / 20,
                }
            )
    return Dataset.from_list(rows)


def moved_weights(trainer: MODPOTrainer) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}


def log_column(trainer: MODPOTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_same_training(a: MODPOTrainer, b: MODPOTrainer, tolerance: float = 1e-4) -> None:
    """The same losses, and weights that are apart by a small part of the way they went."""
    assert log_column(a, "loss") == pytest.approx(log_column(b, "loss"), rel=tolerance, abs=1e-6)
    ours, theirs = moved_weights(a), moved_weights(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=tolerance, atol=tolerance / 10, msg=lambda m, n=name: n + m
        )


def logps_of(model: Any, scored: Dataset) -> list[float]:
    model.eval()
    with torch.no_grad():
        return padded_logps(model, scored["prompt_ids"][:3], scored["responses_ids"][:3]).tolist()
