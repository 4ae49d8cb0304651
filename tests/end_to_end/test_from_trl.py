"""recipes/from_trl.py is a script of TRL but for two names: with those of TRL it trains the same policy."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.kit import WORDS, write_rows

SCRIPT = Path(__file__).parents[2] / "recipes" / "from_trl.py"
NAMES = {"from modpo import": "from trl import", "MODPOConfig": "DPOConfig", "MODPOTrainer": "DPOTrainer"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Conversations whose prompt is what chosen and rejected have in common: five batches of four, and four to test."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [conversation(i) for i in range(24)]
    write_rows(folder / "train.jsonl", rows[:20])
    write_rows(folder / "test.jsonl", rows[20:])
    return folder


def conversation(i: int) -> dict[str, Any]:
    word = WORDS[i % len(WORDS)]
    asked = {"role": "user", "content": f"{i}: the {word}?"}
    answers = {"chosen": f"good {word}" + " and more" * (i % 3), "rejected": f"no {word}" + "!" * (i % 4)}
    return {name: [asked, {"role": "assistant", "content": answer}] for name, answer in answers.items()} | {
        "score_chosen": 8.0,  # as ultrafeedback has them: no objective, and nothing to trip over
        "score_rejected": 5.0,
    }


def run(source: str, folder: Path, *arguments: Path) -> list[dict[str, float]]:
    """Run it as a script in a folder of its own; what it prints of its two evaluations."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(source)
    environment = os.environ | {"MODPO_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "huggingface")}
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = [line for line in done.stdout.splitlines() if line.startswith(("{'eval_loss'", "{'first_loss'"))]
    return [ast.literal_eval(line) for line in metrics[-2:]]


def weights(folder: Path) -> torch.Tensor:
    """All of a model's numbers, as one row."""
    tensors = load_file(folder / "model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def test_two_names_lie_between_trl_and_modpo(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    ours = SCRIPT.read_text("utf-8")
    theirs = ours
    for name, other in NAMES.items():
        assert name in ours
        theirs = theirs.replace(name, other)
    modpo = run(ours, tmp_path / "modpo", tiny_model, data)
    trl = run(theirs, tmp_path / "trl", tiny_model, data)
    for found, expected, split in zip(modpo, trl, ("eval", "first"), strict=True):
        # TRL's own metrics are called eval_, whatever the split.
        compared = [f"{split}_loss", "eval_rewards/chosen", "eval_rewards/accuracies"]
        assert {n: found[n] for n in compared} == pytest.approx({n: expected[n] for n in compared}, abs=1e-5)
    start, trained, expected = map(
        weights, (tiny_model, tmp_path / "modpo/from_trl/final", tmp_path / "trl/from_trl/final")
    )
    assert torch.linalg.norm(trained - expected) < 0.01 * torch.linalg.norm(expected - start)
