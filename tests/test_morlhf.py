"""MORLHF on a tiny model: the reward is the weighted sum of what MODPO's margins are, and it rises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from modpo.publish import read_manifest
from modpo.simplex import Weights
from modpo.sweep import point_folder, train_point


def letters(completions: list[str], **kwargs: object) -> list[float]:
    """The share of an answer's characters that stand before n: about half of what an untrained model writes."""
    return [sum(c < "n" for c in text) / max(1, len(text)) for text in completions]


def length(completions: list[str], **kwargs: object) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture
def experiment_file(tmp_path: Path, tiny_model: Path) -> Path:
    rows = [{"prompt": f"{i}: go? ", "chosen": f"yes {i}", "rejected": f"no, never {i}"} for i in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    path = tmp_path / "experiment.yaml"
    path.write_text(
        f"""
model: {{model_name_or_path: {tiny_model}, dtype: float32}}
lora: {{r: 4}}
data: {{path: {tmp_path / "rows.jsonl"}, eval_prompts: 2, max_length: 64}}
objectives:
  letters: {{pairs: data, reward: "{__name__}:letters", scale: 4}}
  short: {{reward: "{__name__}:length", maximize: false, calibration: standardise}}
training: {{beta: 0.05, logging_steps: 1}}
morlhf: {{max_steps: 4, per_device_train_batch_size: 8, learning_rate: 1e-2, max_completion_length: 8}}
sweep: {{method: morlhf, grid: 2}}
evaluation: {{max_new_tokens: 8, bootstrap: 50}}
output_dir: {tmp_path / "run"}
cache_dir: {tmp_path / "cache"}
"""
    )
    return path


def read(path: Path, *overrides: str) -> Experiment:
    return read_experiment(path, list(overrides))


def log_of(experiment: Experiment, weights: Weights) -> list[dict[str, float]]:
    entries = json.loads((point_folder(experiment, weights) / "training_log.json").read_text())
    return [entry for entry in entries if "reward" in entry]


def test_a_point_is_an_adapter_with_its_cost_and_its_log(experiment_file: Path) -> None:
    experiment = read(experiment_file)
    weights = experiment.sweep.weights[0]
    folder = train_point(experiment, weights)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest["weights"], manifest["beta"]) == (weights, 0.05)
    cost = manifest["cost"]
    assert cost["seconds"] > 0
    assert cost["tokens"] > 4 * 8
    assert 4 * 8 <= cost["tokens_generated"] <= 4 * 8 * 8
    trained = load_file(folder / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in trained.items() if "lora_B" in name)
    assert all(tensor.isfinite().all() for tensor in trained.values())
    log = log_of(experiment, weights)
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    for entry in log:
        parts = {name: entry[f"rewards/{name}/mean"] for name in weights}
        assert entry["reward"] == pytest.approx(sum(weights[name] * parts[name] for name in weights), rel=1e-4)
