"""`LossWeightingTrainer` against DPO's loss of each objective, weighted and summed, on a real, small model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from modpo.base.errors import InputError
from modpo.experiment.sections import Objective
from modpo.forward.logprobs import padded_logps
from modpo.scored.of_rows import score_dataset
from modpo.training.config import MODPOConfig
from modpo.training.loss import modpo_loss
from modpo.training.loss_weighting import LossWeightingTrainer, pair_weights
from modpo.training.trainer import MODPOTrainer
from tests.training.runs import assert_same_training, log_column, moved_weights

WEIGHTS = {"true": 0.3, "kind": 0.7, "short": 0.0}
BETA, RATE, STEPS = 0.5, 0.002, 3


@pytest.fixture(scope="module")
def scored(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """4 prompts: 7 pairs of `true`, 2 of `kind`, of which one is the other way round; `short` has a weight of 0."""
    pairs = [
        {"T": [[0, 1], [2, 1]], "K": [[1, 0]]},
        {"T": [[0, 1], [0, 2], [1, 2]]},
        {"K": [[2, 1]], "S": [[0, 1]]},
        {"T": [[0, 2], [1, 0]]},
    ]
    words = ["yes, it is", "no!", "who can say?"]
    rows = [{"prompt": f"Is {i} large? ", "responses": words, "pairs": p} for i, p in enumerate(pairs)]
    return score_dataset(
        Dataset.from_list(rows),
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        tokenizer=AutoTokenizer.from_pretrained(tiny_model),
        objectives={name: Objective(name, pairs=name[0].upper()) for name in WEIGHTS},
        label_sets={name: name[0].upper() for name in WEIGHTS},
        max_length=64,
        cache_dir=tmp_path_factory.mktemp("cache"),
    )


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., MODPOConfig]:
    """Plain gradient descent in float32, so that gradients are what is compared; all prompts in a step."""

    def make(**settings: object) -> MODPOConfig:
        quick = {
            "output_dir": str(tmp_path / "run"),
            "weights": WEIGHTS,
            "beta": BETA,
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "optim": "sgd",
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        return MODPOConfig(**(quick | settings))

    return make


def trained(tiny_model: Path, args: MODPOConfig, rows: Dataset, kind: type[MODPOTrainer] = LossWeightingTrainer):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trainer = kind(model, args=args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    return trainer


def oracle_loss(model: torch.nn.Module, rows: Dataset) -> Tensor:
    """sum_i w_i (mean over the pairs of i of DPO's loss), every response read by itself."""
    total = torch.zeros(())
    for name, weight in WEIGHTS.items():
        losses = []
        for row in rows:
            for chosen, rejected in row[f"pairs/{name}"] if weight else []:
                ids = [[row["responses_ids"][i]] for i in (chosen, rejected)]
                logps = padded_logps(model, [row["prompt_ids"]] * 2, ids)
                ref = torch.tensor([row["ref_logps"][i] for i in (chosen, rejected)])
                four, none = (logps[:1], logps[1:], ref[:1], ref[1:]), torch.zeros(1, 0)
                losses.append(modpo_loss(*four, none, none, weights=(1.0,), beta=BETA)[0])
        if losses:
            total = total + weight * torch.cat(losses).mean()
    return total


@pytest.mark.parametrize("settings", [{}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}])
def test_losses_and_weights_are_the_sum_of_dpo_s(tiny_model: Path, config, scored: Dataset, settings: dict) -> None:
    """Three steps of gradient descent: the losses, and where all weights end, as with the oracle's gradients."""
    trainer = trained(tiny_model, config(**settings), scored)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    losses = []
    for _ in range(STEPS):
        loss = oracle_loss(model, scored)
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= RATE * parameter.grad
    assert log_column(trainer, "loss") == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0]
    start = dict(AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters())
    expected = dict(model.named_parameters())
    for name, found in moved_weights(trainer).items():
        moved = (expected[name] - start[name]).norm()
        assert moved > 0
        assert (found - expected[name]).norm() < 1e-3 * moved, name


def test_a_pair_counts_what_its_objective_weighs(scored: Dataset) -> None:
    """9 pairs in all, 7 and 2: 0.3 * 9 / 7 and 0.7 * 9 / 2; over all pairs they sum to 9, so the mean is L(w)."""
    assert pair_weights(scored, WEIGHTS) == pytest.approx([0.3 * 9 / 7, 0.7 * 9 / 2, 0.0])


def test_at_an_end_it_is_modpo(tiny_model: Path, config, scored: Dataset) -> None:
    args = {"weights": {"true": 1.0, "kind": 0.0, "short": 0.0}}
    ours, theirs = (trained(tiny_model, config(**args), scored, kind) for kind in (LossWeightingTrainer, MODPOTrainer))
    assert_same_training(ours, theirs)


def test_it_reads_every_prompt_with_pairs_of_an_objective_with_a_weight(tiny_model: Path, config, scored) -> None:
    assert len(trained(tiny_model, config(max_steps=1), scored).train_dataset) == 4
    args = config(max_steps=1, weights={"true": 0.0, "kind": 0.5, "short": 0.5})
    assert len(trained(tiny_model, args, scored).train_dataset) == 2


def test_an_objective_without_pairs_is_refused(tiny_model: Path, config, scored: Dataset) -> None:
    rows = scored.select([1, 3])  # none of `kind` there
    with pytest.raises(InputError, match="train_dataset:pairs/kind: there is no pair to train on; fix: give it pairs"):
        trained(tiny_model, config(), rows)
