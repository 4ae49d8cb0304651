"""The packed path of the on-policy trainers against TRL's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from modpo.data.loading import load_groups
from modpo.experiment.file import read_experiment
from modpo.forward.packing_choice import with_packing
from modpo.methods.morlhf import new_trainer
from modpo.methods.point import give_base_back
from modpo.methods.run import Run
from modpo.models.reference import ReferenceModel
from modpo.scored.of_experiment import experiment_scorer
from modpo.training.checkpoints import trained_tensors
from modpo.training.on_policy import OnPolicy
from tests.kit import write_experiment, write_rows


def length(completions: list[list[dict[str, str]]], **kwargs: object) -> list[float]:
    return [float(len(answer[-1]["content"])) for answer in completions]


@pytest.fixture
def experiment_file(tmp_path: Path, tiny_model: Path) -> Path:
    talks = [[{"role": "user", "content": f"{i}: go" + "?" * i}] for i in range(9)]
    answers = [[{"role": "assistant", "content": text}] for text in ("yes", "no, never")]
    rows = [{"prompt": talk, "responses": answers} for talk in talks]
    write_rows(tmp_path / "rows.jsonl", rows)
    return write_experiment(
        tmp_path,
        tiny_model,
        data="{path: FOLDER/rows.jsonl, eval_prompts: 1, max_length: 64}",
        objectives=f'{{long: {{pairs: bradley_terry, reward: "{__name__}:length"}}}}',
        training="{beta: 0.1, logging_steps: 1, lr_scheduler_type: constant, warmup_steps: 0}",
        morlhf="""
  max_steps: 2
  per_device_train_batch_size: 8
  learning_rate: 0.3
  max_completion_length: 8
  arguments: {optim: sgd} # what is compared is the gradient, not Adam's sign of it""",
        sweep="{method: morlhf, weights: [{long: 1}]}",
        evaluation=None,
    )


def trained_by(path: Path, *overrides: str) -> tuple[OnPolicy, dict[str, Tensor]]:
    experiment = read_experiment(path, list(overrides))
    prompts, _ = load_groups(experiment)
    reference = ReferenceModel(experiment.model, experiment.cache_dir)
    experiment = with_packing(experiment, reference)
    scorer = experiment_scorer(experiment, reference)
    run = Run(experiment, scorer.score(prompts), reference, prompts, scorer.rewards)
    trainer = new_trainer(run, experiment.sweep.weights[0], path.parent / "work")
    trainer.train()
    tensors = {name: tensor.clone() for name, tensor in trained_tensors(trainer.model).items()}
    give_base_back(trainer, reference)
    return trainer, tensors


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["morlhf.algorithm=grpo"],
        ["max_steps=3", "per_device_train_batch_size=4", "arguments.gradient_accumulation_steps=2"],
        ["max_steps=3", "arguments.num_iterations=2"],
    ],
    ids=["rloo", "grpo", "accumulated", "iterated"],
)
def test_packed_training_is_trl_s_own(experiment_file: Path, overrides: list[str]) -> None:
    overrides = [name if name.startswith("morlhf") else f"morlhf.{name}" for name in overrides]
    packed, ours = trained_by(experiment_file, *overrides)
    plain, theirs = trained_by(experiment_file, *overrides, "training.packing=false")
    assert packed._packs
    assert not plain._packs
    assert packed.tokens_generated == plain.tokens_generated > 0
    assert packed.tokens_read < plain.tokens_read
    moved = 0.0
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)  # float32 differs by 2e-7
        moved = max(moved, tensor.abs().max().item() if "lora_B" in name else 0.0)
    assert moved > 1e-2
    for ours_then, theirs_then in zip(packed.state.log_history, plain.state.log_history, strict=True):
        for name in ("reward", "kl", "grad_norm"):
            assert ours_then.get(name, 0) == pytest.approx(theirs_then.get(name, 0), rel=1e-3, abs=1e-4), name


def test_log_probs_are_read_once_where_they_are_trained_on(experiment_file: Path, monkeypatch: pytest.MonkeyPatch):
    """RLOO reads fresh answers to compare with, then the reference's log-probs; training has the first ones."""
    passes: list[bool] = []
    plain = OnPolicy._packed

    def counted(self: OnPolicy, *args: object) -> Tensor:
        passes.append(torch.is_grad_enabled())
        return plain(self, *args)

    monkeypatch.setattr(OnPolicy, "_packed", counted)
    trained_by(experiment_file)
    assert passes == [True, False] * 2


def test_layers_that_run_again_are_read_as_trl_does(experiment_file: Path) -> None:
    _, ours = trained_by(experiment_file, "training.packing=false")
    again, theirs = trained_by(experiment_file, "training.gradient_checkpointing=true")
    assert not again._packs
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)
