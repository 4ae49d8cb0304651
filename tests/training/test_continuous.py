"""`ContinuousTrainer` on real rows and a real, small model: what it draws, what it trains, what it keeps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import modpo.training.continuous
from modpo.base.errors import InputError
from modpo.base.simplex import Weights, spread_out
from modpo.experiment.primary import REGRESSION
from modpo.experiment.sections import Objective, RewardSection
from modpo.scored.of_rows import score_dataset
from modpo.training.config import MODPOConfig
from modpo.training.continuous import GRID, ContinuousConfig, ContinuousTrainer, draw, steer
from modpo.training.trainer import MODPOTrainer
from tests.models.adapters import load_policy
from tests.training.runs import LORA, assert_same_training, log_column, logps_of, moved_weights, preference_rows

WEIGHTS = {"better": 0.6, "short": 0.4}
OBJECTIVES = {
    "better": Objective("better"),  # known by its pairs, and by no reward
    "short": Objective("short"),  # columns of the rows
    "words": Objective(
        "words", maximize=False, scale=0.2, reward=RewardSection(function="modpo.rewards.text:word_count")
    ),
    "wonder": Objective(
        "wonder", reward=RewardSection(function="modpo.rewards.text:match_count", kwargs={"pattern": "!"})
    ),
}
NAMES = list(OBJECTIVES)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def scored(tiny_model: Path, cache: Path) -> Dataset:
    """8 prompts with 15 pairs of `better`, and rewards for the three others."""
    return score(tiny_model, cache, preference_rows(), OBJECTIVES, {"better": "data"})


def score(tiny_model: Path, cache: Path, rows: Dataset, objectives: dict, label_sets: dict[str, str]) -> Dataset:
    return score_dataset(
        rows,
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        tokenizer=AutoTokenizer.from_pretrained(tiny_model),
        objectives=objectives,
        label_sets=label_sets,
        max_length=1024,
        cache_dir=cache,
    )


@pytest.fixture
def config(tmp_path: Path, cache: Path, plain_descent: dict[str, Any]) -> Callable[..., ContinuousConfig]:

    def make(kind: type[MODPOConfig] = ContinuousConfig, **settings: Any) -> Any:
        quick = {
            **plain_descent,
            "output_dir": str(tmp_path / "run"),
            "cache_dir": str(cache),
            "weights": WEIGHTS,
        }
        return kind(**(quick | settings))

    return make


def make_trainer(tiny_model: Path, args: MODPOConfig, rows: Dataset, **arguments: Any) -> Any:
    """A trainer of the configuration's kind, with the objectives of this file."""
    kind = ContinuousTrainer if isinstance(args, ContinuousConfig) else MODPOTrainer
    return kind(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        args=args,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
        peft_config=arguments.pop("peft_config", None) or LoraConfig(**LORA),
        objectives=arguments.pop("objectives", OBJECTIVES),
        **arguments,
    )


def trained(tiny_model: Path, args: MODPOConfig, rows: Dataset, **arguments: Any) -> Any:
    trainer = make_trainer(tiny_model, args, rows, **arguments)
    trainer.train()
    return trainer


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`pinned(vector, ...)`: what is drawn, one after the other and then again."""

    def pin(*vectors: Weights) -> None:
        number = iter(range(10**9))
        monkeypatch.setattr(modpo.training.continuous, "draw", lambda *_: vectors[next(number) % len(vectors)])

    return pin


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """What is drawn."""
    drawn: list[Weights] = []

    def record(*arguments: Any) -> Weights:
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(modpo.training.continuous, "draw", record)
    return drawn


def saved(trainer: ContinuousTrainer, folder: Path) -> dict[str, bytes]:
    trainer.save_policy(folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


# --- what is drawn --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_concentration_1_is_uniform_on_the_simplex(objectives: int):
    """Mean 1/K, variance (K-1) / K^2 (K+1), covariance -1 / K^2 (K+1), within four standard errors and the grid."""
    torch.manual_seed(0)
    k, n = objectives, 4000
    drawn = torch.tensor([list(draw(NAMES[:k], 1.0).values()) for _ in range(n)], dtype=torch.float64)
    variance, covariance = (k - 1) / (k**2 * (k + 1)), -1 / (k**2 * (k + 1))
    error = 4 * (variance / n) ** 0.5
    assert drawn.mean(0).tolist() == pytest.approx([1 / k] * k, abs=error)
    found = drawn.T.cov()
    assert found.diag().tolist() == pytest.approx([variance] * k, rel=0.12)
    assert found[~torch.eye(k, dtype=torch.bool)].tolist() == pytest.approx([covariance] * (k * k - k), rel=0.25)


@pytest.mark.parametrize("concentration", [1e-3, 0.1, 1.0, 50.0])
def test_drawn_vectors_are_on_the_grid(concentration: float):
    torch.manual_seed(0)
    for _ in range(200):
        vector = draw(NAMES, concentration)
        steps = [weight * GRID for weight in vector.values()]
        assert list(vector) == NAMES
        assert min(steps) >= 0
        assert steps == pytest.approx([round(step) for step in steps], abs=1e-9)
        assert sum(round(step) for step in steps) == GRID


def test_concentration_says_how_far_from_the_middle():
    torch.manual_seed(0)
    spread = {c: torch.tensor([draw(["a", "b"], c)["a"] for _ in range(500)]).std().item() for c in (0.01, 1.0, 100.0)}
    assert spread[0.01] > 0.45  # nearly all in the corners
    assert 0.26 < spread[1.0] < 0.32  # 1 / sqrt(12)
    assert spread[100.0] < 0.05


def test_a_vector_for_each_batch_or_for_some_prompts(tiny_model: Path, config, scored: Dataset, recorded: list):
    rows = [scored[i] for i in range(5)]
    for prompts_per_draw, expected in [(None, [5]), (5, [5]), (2, [2, 2, 1]), (1, [1] * 5)]:
        trainer = make_trainer(tiny_model, config(prompts_per_draw=prompts_per_draw), scored)
        recorded.clear()
        parts = trainer.at_weights({"rows": rows})["parts"]
        assert len(recorded) == len(expected)
        assert [part["weights"].tolist() for part in parts] == [list(vector.values()) for vector in recorded]
        pairs = [len(row["pairs/better"]) for row in rows]
        starts = [sum(expected[:n]) for n in range(len(expected))]
        in_parts = [sum(pairs[start : start + n]) for start, n in zip(starts, expected, strict=True)]
        assert [len(part["pairs"]) for part in parts] == in_parts


# --- what it trains on ----------------------------------------------------------------------------------------


def differences(name: str) -> Tensor:
    """Margin reward of chosen minus rejected, of all 15 pairs, by hand."""
    rows = preference_rows()
    numbers = {
        "short": lambda side: torch.tensor(rows[f"{side}_short"]),
        "words": lambda side: torch.tensor([-0.2 * len(text.split()) for text in rows[side]]),
        "wonder": lambda side: torch.tensor([float(text.count("!")) for text in rows[side]]),
    }
    return numbers[name]("chosen") - numbers[name]("rejected")


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_first_loss_by_hand(tiny_model: Path, config, scored: Dataset, recorded: list, objectives: int):
    """At step 0 every policy is the reference: the mean over pairs of w_k * -log sigmoid(-sum_j w_j / w_k * r_j)."""
    names = NAMES[:objectives]
    args = config(weights={name: 1 / objectives for name in names}, max_steps=1, per_device_train_batch_size=8)
    trainer = trained(tiny_model, args, scored)
    (w,) = recorded
    assert w["better"] not in (0, 1 / objectives)
    margins = sum(w[name] * differences(name) for name in names[1:]) / w["better"]
    expected = w["better"] * -F.logsigmoid(-margins).mean().item()
    assert log_column(trainer, "loss")[0] == pytest.approx(expected, rel=1e-3)
    first = trainer.state.log_history[0]
    for name in names[1:]:
        assert first[f"margins/{name}"] == pytest.approx(differences(name).mean().item(), rel=1e-4)


@pytest.mark.parametrize(("objectives", "packing"), [(2, True), (3, False), (4, True)])
def test_training_lowers_the_loss_and_moves_every_adapter(
    tiny_model: Path, config, scored: Dataset, objectives: int, packing: bool
):
    names = NAMES[:objectives]
    args = config(
        weights={name: 1 / objectives for name in names},
        max_steps=12,
        per_device_train_batch_size=8,
        optim="adamw_torch",
        learning_rate=3e-3,
        packing=packing,
        prompts_per_draw=4,
    )
    trainer = make_trainer(tiny_model, args, scored, eval_dataset=scored)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.6 * before
    assert len(trainer.adapters) == objectives
    for adapter in trainer.adapters.values():
        moved = [p for n, p in trainer.model.named_parameters() if f"lora_B.{adapter}." in n]
        assert len(moved) == 14
        assert all(p.abs().max() > 1e-3 for p in moved)


def test_a_pinned_vector_against_the_trainer_of_one_vector(tiny_model: Path, config, scored: Dataset, pinned):
    """One step of gradient descent: the loss of `MODPOTrainer` at w, and in adapter i, dL/dB_i = c_i dL/dB."""
    pinned(WEIGHTS)
    settings = {"max_steps": 1, "per_device_train_batch_size": 8}
    one = trained(tiny_model, config(MODPOConfig, **settings), scored)
    every = make_trainer(tiny_model, config(**settings), scored)
    a = {n: p.detach().clone() for n, p in every.model.named_parameters() if "lora_A.default" in n}
    for name, tensor in a.items():  # the adapters begin with different A; here with one, as `one` has it
        every.model.get_parameter(name.replace("default", "objective_1")).data.copy_(tensor)
    every.train()
    assert log_column(every, "loss") == pytest.approx(log_column(one, "loss"), rel=1e-5)
    moved = moved_weights(one)
    for name, tensor in moved.items():
        if "lora_B" in name:
            for adapter, scale in (("default", 0.7), ("objective_1", 0.3)):  # 1/2 + 2 (w - 1/2)
                found = every.model.get_parameter(name.replace("default", adapter))
                torch.testing.assert_close(found.detach(), scale * tensor, rtol=1e-3, atol=1e-7)
    assert max(float(t.abs().max()) for n, t in moved.items() if "lora_B" in n) > 1e-4


def test_corners_train(tiny_model: Path, config, scored: Dataset, pinned):
    """A weight of 0: DPO at (1, 0), regression at (0, 1), with three objectives on an edge too."""
    corners = [{"better": 1.0, "short": 0.0}, {"better": 0.0, "short": 1.0}]
    pinned(*corners)
    trainer = trained(tiny_model, config(max_steps=2, per_device_train_batch_size=8, spread=1.0), scored)
    losses = log_column(trainer, "loss")
    twos = [
        (a - b) ** 2 / 2 for row in scored for n, a in enumerate(row["reward/short"]) for b in row["reward/short"][:n]
    ]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-3)  # nothing but pairs, and no difference yet
    assert losses[1] == pytest.approx(sum(twos) / len(twos), rel=0.2)
    kinds = [trainer.at_weights({"rows": list(scored)})["parts"][0]["primaries"].unique().tolist() for _ in corners]
    assert kinds == [[0], [REGRESSION]]
    pinned({"better": 0.0, "short": 0.5, "words": 0.5}, {"better": 0.5, "short": 0.0, "words": 0.5})
    three = config(weights={"better": 0.4, "short": 0.3, "words": 0.3}, max_steps=4)
    assert all(math.isfinite(loss) for loss in log_column(trained(tiny_model, three, scored), "loss"))


def test_where_one_has_no_weight_the_pairs_of_another_are_trained_on(tiny_model: Path, config, cache: Path, pinned):
    words = ["yes", "no, never", "perhaps"]
    rows = [
        {"prompt": f"Is {i} large? ", "responses": words, "pairs": {"A": [[0, 1]], "B": [[1, 2]]}}
        | {"a": [1.0, 0.0, 2.0], "b": [0.0, 3.0, 1.0]}
        for i in range(3)
    ]
    objectives = {name: Objective(name, pairs=name.upper(), reward=RewardSection(column=name)) for name in "ab"}
    data = score(tiny_model, cache, Dataset.from_list(rows), objectives, {"a": "A", "b": "B"})
    vectors = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.7, "b": 0.3}, {"a": 0.3, "b": 0.7}]
    pinned(*vectors)
    args = config(weights={"a": 0.5, "b": 0.5}, max_steps=4, per_device_train_batch_size=3)
    trainer = trained(tiny_model, args, data, objectives=objectives)
    assert all(math.isfinite(loss) for loss in log_column(trainer, "loss"))
    kinds = [trainer.at_weights({"rows": list(data)})["parts"][0]["primaries"].unique().tolist() for _ in vectors]
    assert kinds == [[0], [1], [0], [1]]


# --- the same training, differently computed ------------------------------------------------------------------


def test_packed_and_padded_train_the_same(tiny_model: Path, config, scored: Dataset):
    runs = [trained(tiny_model, config(packing=packing, prompts_per_draw=2), scored) for packing in (True, False)]
    assert_same_training(*runs, tolerance=2e-3)


@pytest.mark.parametrize(("batch", "steps"), [(2, 2), (1, 4)])
def test_accumulated_batches_train_as_one(tiny_model: Path, config, scored: Dataset, batch: int, steps: int):
    """With the same prompts to a vector, it does not matter how they are cut into batches."""
    whole = trained(tiny_model, config(prompts_per_draw=batch), scored)
    accumulated = trained(
        tiny_model, config(per_device_train_batch_size=batch, gradient_accumulation_steps=steps), scored
    )
    assert_same_training(whole, accumulated)


def test_a_batch_read_in_parts_trains_as_one(tiny_model: Path, config, scored: Dataset):
    assert_same_training(*(trained(tiny_model, config(max_packed_tokens=n), scored) for n in (10_000, 60)))


def test_gradient_checkpointing_trains_the_same(tiny_model: Path, config, scored: Dataset):
    """Layers run again in the backward pass, at the vector of their own part."""
    runs = [trained(tiny_model, config(gradient_checkpointing=on, prompts_per_draw=1), scored) for on in (True, False)]
    assert runs[0].model.is_gradient_checkpointing
    assert_same_training(*runs)


def test_same_seed_same_bytes(tiny_model: Path, config, scored: Dataset, tmp_path: Path):
    runs = [
        saved(trained(tiny_model, config(seed=seed), scored), tmp_path / str(n)) for n, seed in enumerate([1, 1, 2])
    ]
    assert runs[0] == runs[1]
    assert sorted(runs[0]) == ["better/adapter_model.safetensors", "short/adapter_model.safetensors"]
    assert runs[0]["short/adapter_model.safetensors"] != runs[2]["short/adapter_model.safetensors"]


# --- what it logs and keeps -----------------------------------------------------------------------------------


def test_logs_have_trl_s_names(tiny_model: Path, config, scored: Dataset):
    trainer = trained(tiny_model, config(), scored)
    names = {"loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"}
    assert names | {"logps/chosen", "logps/rejected", "margins/short"} <= trainer.state.log_history[0].keys()


def test_evaluation_is_at_the_weights(tiny_model: Path, config, scored: Dataset):
    """By hand before training; afterwards lower, and twice the same."""
    expected = 0.6 * -F.logsigmoid(-0.4 / 0.6 * differences("short")).mean().item()
    args = config(per_device_eval_batch_size=8, max_steps=6, learning_rate=0.05)
    trainer = make_trainer(tiny_model, args, scored, eval_dataset=scored)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-3)
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < expected
    assert trainer.evaluate()["eval_loss"] == after["eval_loss"]
    assert {"eval_rewards/margins", "eval_margins/short"} <= after.keys()


@pytest.mark.parametrize("objectives", [2, 3])
def test_saved_and_loaded_policy(tiny_model: Path, config, scored: Dataset, tmp_path: Path, objectives: int):
    """Log-probs at two vectors are those of the trained model."""
    names = NAMES[:objectives]
    trainer = trained(tiny_model, config(weights={name: 1 / objectives for name in names}), scored)
    assert len(saved(trainer, tmp_path / "policy")) == objectives
    loaded = load_policy(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "policy", names)
    assert not any(p.requires_grad for p in loaded.parameters())
    found = []
    for first in (0.9, 0.2):
        w = [first, *[(1 - first) / (objectives - 1)] * (objectives - 1)]
        trainer.steer(torch.tensor(w))
        steer(loaded, spread_out(dict(zip(trainer.adapters.values(), w, strict=True)), trainer.args.spread))
        found.append(logps_of(loaded, scored))
        assert found[-1] == pytest.approx(logps_of(trainer.model, scored), abs=1e-4)
    assert found[0] != pytest.approx(found[1], abs=1e-3)


# --- what it refuses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concentration": 0.0}, "ContinuousConfig:concentration: is 0.0; fix: give a number above 0"),
        ({"concentration": math.nan}, "ContinuousConfig:concentration: is nan"),
        ({"prompts_per_draw": 0}, "ContinuousConfig:prompts_per_draw: is 0; fix: give at least 1"),
        ({"weights": {"better": 1.0}}, "one objective has one vector; fix: use MODPOTrainer"),
        ({"weights": {"better": 1.0, "short": 0.0}}, "ContinuousConfig:weights.short: is 0; fix: give every"),
        ({"weights": {"better": 0.5, "../short": 0.5}}, "ContinuousConfig:weights.../short: cannot name a folder"),
        ({"loss_type": "ipo"}, "loss_type: is ['ipo']; fix: use one of sigmoid, hinge"),
    ],
)
def test_refused_settings(config, settings: dict[str, Any], message: str):
    with pytest.raises(InputError) as caught:
        config(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "ContinuousTrainer:peft_config: sets modules_to_save; fix: give a plain"),
        ({"use_dora": True}, "sets use_dora"),
        ({"bias": "all"}, "trains biases"),
        ({"init_lora_weights": "pissa"}, "changes its base"),
    ],
)
def test_adapters_that_cannot_be_steered_are_refused(tiny_model: Path, config, scored, lora: dict, message: str):
    with pytest.raises(InputError, match=message):
        make_trainer(tiny_model, config(), scored, peft_config=LoraConfig(**LORA, **lora))


# --- where k weighs little ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("below", "primaries"), [(None, [REGRESSION, 0]), (0.0, [0, 0]), (0.3, [0, 0])])
def test_below_the_average_weight_k_is_trained_by_regression(
    tiny_model: Path, scored: Dataset, config, pinned, below: float | None, primaries: list[int]
) -> None:
    """`better` has pairs and, here, a column of rewards."""
    rows = scored.add_column("reward/better", scored["reward/short"][:])
    trainer = make_trainer(tiny_model, config(regression_below=below), rows)
    found = []
    for weight in (0.4, 0.6):
        pinned({"better": weight, "short": 1 - weight})
        parts = trainer.at_weights({"rows": [rows[i] for i in range(4)]})["parts"]
        found += [{k for part in parts for k in part["primaries"].tolist()}]
    assert found == [{k} for k in primaries]


def test_all_adapters_of_a_layer_are_added_up_in_one_product(tiny_model: Path, scored: Dataset, config) -> None:
    trainer = make_trainer(tiny_model, config(), scored, peft_config=LoraConfig(**LORA | {"lora_dropout": 0.1}))
    layers = [module for module in trainer.model.modules() if isinstance(module, LoraLinear)]
    assert layers
    for layer in layers:
        assert "forward" in layer.__dict__
        assert [layer.lora_dropout[name].p for name in trainer.adapters.values()] == [0.0, 0.0]  # TRL's default
