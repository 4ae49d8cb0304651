"""What the trainers rely on in TRL and transformers, and that with one objective it is TRL's DPOTrainer."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, EvalPrediction, Trainer
from trl import DPOConfig, DPOTrainer, GRPOTrainer, RLOOTrainer

from modpo.experiment.sections import TrainingSection
from modpo.training import resumable
from modpo.training.config import MODPOConfig
from modpo.training.on_policy import OnPolicyGRPO, OnPolicyRLOO
from modpo.training.trainer import MODPOTrainer
from modpo.training.trl_contract import ATTRIBUTES, METHODS

METRICS = [
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "num_tokens",
]
OVER_TOKENS = ("logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy")
OF_TRAINING = ("grad_norm", "learning_rate")


def preference_rows() -> Dataset:
    """8 prompts with one pair each, of different lengths; no token of a byte tokenizer spans the boundary."""
    return Dataset.from_list(
        [
            {"prompt": f"Question {i}: " + "why? " * i, "chosen": "because " * (i % 3 + 1), "rejected": "no" + "!" * i}
            for i in range(8)
        ]
    )


def run(
    kind: type[DPOTrainer],
    tiny_model: Path,
    tmp_path: Path,
    plain_descent: dict[str, Any],
    *,
    lora: bool,
    rows: Dataset | None = None,
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
    **settings: Any,
) -> DPOTrainer:
    """Four steps of plain gradient descent by either trainer, with the same settings."""
    rows = rows or preference_rows()
    shared = {
        **plain_descent,
        "output_dir": str(tmp_path / kind.__name__),
        "max_steps": 4,
        "per_device_eval_batch_size": 8,
        "learning_rate": 0.2 if lora else 0.01,
        "max_grad_norm": 1.0,
        "beta": 0.2,
        **settings,
    }
    if kind is MODPOTrainer:
        args = MODPOConfig(**shared, weights={"better": 1.0}, cache_dir=str(tmp_path / "cache"))
    else:
        args = DPOConfig(**shared)
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear") if lora else None,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    trainer.evaluate()
    return trainer


def compare(ours: DPOTrainer, theirs: DPOTrainer, *, accumulated: bool = False) -> None:
    """Every step's logs, the held-out logs, and the weights, which have moved.

    Where a step is accumulated, TRL logs the mean of its batches' means over tokens, which is another number.
    """
    in_steps = [*METRICS, *OF_TRAINING, *(() if accumulated else OVER_TOKENS)]
    pairs = list(zip(ours.state.log_history, theirs.state.log_history, strict=True))
    assert len(pairs) == 4 + 2  # four steps, the end of training, the evaluation
    for step, (found, expected) in enumerate(pairs[:4], start=1):
        assert found["step"] == expected["step"] == step
        # At the first step policy and reference are one, and which response lies above the other is rounding.
        for name in [name for name in in_steps if (name, step) != ("rewards/accuracies", 1)]:
            assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), f"step {step}: {name}"
    for name in (*METRICS, *OVER_TOKENS):
        name = f"eval_{name}"
        assert pairs[-1][0][name] == pytest.approx(pairs[-1][1][name], rel=1e-5, abs=1e-5), name
    assert {name for name in pairs[0][1] if "/" in name or name in METRICS} <= pairs[0][0].keys()
    weights, wanted = ({n: p.detach() for n, p in t.model.named_parameters()} for t in (ours, theirs))
    assert weights.keys() == wanted.keys()
    start = dict(AutoModelForCausalLM.from_pretrained(ours.model.config._name_or_path).named_parameters())
    for name, tensor in wanted.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5)
        if "lora_B" in name:
            assert tensor.abs().max() > 1e-3
        if name in start and tensor.requires_grad:
            assert (tensor - start[name]).abs().max() > 1e-4


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge"])
@pytest.mark.parametrize("lora", [True, False], ids=["LoRA", "all weights"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_one_objective_is_trl_s_dpo(
    tiny_model: Path, tmp_path: Path, plain_descent: dict[str, Any], packing: bool, lora: bool, loss_type: str
):
    """w = (1,): the same tokens, losses, gradients (through the weights after each step) and logs."""
    theirs = run(DPOTrainer, tiny_model, tmp_path, plain_descent, lora=lora, loss_type=loss_type)
    ours = run(MODPOTrainer, tiny_model, tmp_path, plain_descent, lora=lora, loss_type=loss_type, packing=packing)
    for group, row in zip(ours.train_dataset, theirs.train_dataset, strict=True):
        assert group["prompt_ids"] == row["prompt_ids"]
        assert [group["responses_ids"][i] for i in group["pairs/better"][0]] == [row["chosen_ids"], row["rejected_ids"]]
    compare(ours, theirs)


def test_accumulated_steps_are_trl_s(tiny_model: Path, tmp_path: Path, plain_descent: dict[str, Any]):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    runs = [
        run(kind, tiny_model, tmp_path, plain_descent, lora=True, **settings) for kind in (MODPOTrainer, DPOTrainer)
    ]
    compare(*runs, accumulated=True)


def test_gradient_checkpointing_is_trl_s(tiny_model: Path, tmp_path: Path, plain_descent: dict[str, Any]):
    settings = {"gradient_checkpointing": True}
    compare(
        *(run(kind, tiny_model, tmp_path, plain_descent, lora=True, **settings) for kind in (MODPOTrainer, DPOTrainer))
    )


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_several_pairs_of_a_prompt_are_trl_s_rows(
    tiny_model: Path, tmp_path: Path, plain_descent: dict[str, Any], packing: bool
):
    """3 prompts with 2 pairs each, which share a response: one batch of 3 prompts is one of 6 rows."""
    rows = [
        {"prompt": f"Question {i}: ", "chosen": "because " * (i + 1), "rejected": rejected}
        for i in range(3)
        for rejected in ("no" + "!" * i, "perhaps")
    ]
    settings = {"lora": True, "rows": Dataset.from_list(rows)}
    theirs = run(DPOTrainer, tiny_model, tmp_path, plain_descent, **settings, per_device_train_batch_size=6)
    settings |= {"per_device_train_batch_size": 3, "packing": packing}
    ours = run(MODPOTrainer, tiny_model, tmp_path, plain_descent, **settings)
    assert len(ours.train_dataset) == 3
    compare(ours, theirs)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_conversational_rows_are_trl_s(tiny_model: Path, tmp_path: Path, plain_descent: dict[str, Any], packing: bool):
    rows = preference_rows().map(
        lambda row: {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
    )
    theirs = run(DPOTrainer, tiny_model, tmp_path, plain_descent, lora=True, rows=rows)
    compare(run(MODPOTrainer, tiny_model, tmp_path, plain_descent, lora=True, rows=rows, packing=packing), theirs)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_compute_metrics_sees_what_trl_s_sees(
    tiny_model: Path, tmp_path: Path, plain_descent: dict[str, Any], packing: bool
):
    """Logits and tokens of all chosen texts, then of all rejected ones; in batches of 8 and, in parts, less."""
    seen: dict[type, list[EvalPrediction]] = {DPOTrainer: [], MODPOTrainer: []}
    for kind, predictions in seen.items():

        def look(found: EvalPrediction, predictions: list[EvalPrediction] = predictions) -> dict[str, float]:
            predictions.append(found)
            return {"texts": float(len(found.label_ids))}

        settings = {"packing": packing, "max_packed_tokens": 200} if kind is MODPOTrainer else {}
        trainer = run(kind, tiny_model, tmp_path, plain_descent, lora=True, compute_metrics=look, **settings)
        assert trainer.state.log_history[-1]["eval_texts"] == 16
    (theirs,), (ours,) = seen[DPOTrainer], seen[MODPOTrainer]
    assert (ours.label_ids == theirs.label_ids).all()
    assert ours.predictions.shape == theirs.predictions.shape
    read = torch.tensor(theirs.label_ids != AutoTokenizer.from_pretrained(tiny_model).pad_token_id)
    torch.testing.assert_close(*(torch.tensor(x.predictions)[read] for x in (ours, theirs)), rtol=1e-4, atol=1e-4)


# --- the surface ---------------------------------------------------------------------------------------------------


TRAINERS = {"DPOTrainer": DPOTrainer, "RLOOTrainer": RLOOTrainer, "GRPOTrainer": GRPOTrainer}
PRIVATE = re.compile(r"(?:\bself\.|\bdef )(_[a-z]\w*)")


def private_names(kind: type) -> set[str]:
    """Of the methods and attributes of a class and those it inherits from, as its source has them."""
    return {name for part in kind.__mro__[:-1] for name in PRIVATE.findall(inspect.getsource(part))}


@pytest.mark.parametrize("kind", TRAINERS.values(), ids=TRAINERS)
def test_what_we_touch_is_what_we_know(kind: type):
    for name, parameters in {**METHODS["Trainer"], **METHODS[kind.__name__]}.items():
        known = [parameter for parameter in inspect.signature(getattr(kind, name)).parameters if parameter != "self"]
        if known[:2] == ["args", "kwargs"]:  # it passes on what it is given
            known = list(inspect.signature(getattr(Trainer, name)).parameters)[1:]
        assert tuple(known[: len(parameters)]) == parameters, name
    assert {*ATTRIBUTES["Trainer"], *ATTRIBUTES[kind.__name__]} <= private_names(kind)


def test_what_we_touch_is_in_the_contract():
    """And nothing else is; nor is a private name of ours one of theirs by accident."""
    ours: set[str] = set()
    for path in Path(resumable.__file__).parent.glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        ours |= {getattr(node, "attr", getattr(node, "name", None)) or "" for node in tree}
    listed = {name for part in METHODS.values() for name in part} | {
        name for part in ATTRIBUTES.values() for name in part
    }
    theirs = set.union(*(private_names(kind) for kind in TRAINERS.values()))
    assert {name for name in ours & theirs if not name.startswith("__")} == {n for n in listed if n.startswith("_")}
    assert listed <= ours


def test_overridden_methods_are_overridden():
    """A method that TRL renamed would leave ours uncalled."""
    for kind, parent in ((MODPOTrainer, DPOTrainer), (OnPolicyRLOO, RLOOTrainer), (OnPolicyGRPO, GRPOTrainer)):
        called = {"_prepare_inputs", "_save_optimizer_and_scheduler", "_save_scaler", "_save_rng_state"}
        for name in {**METHODS["Trainer"], **METHODS[parent.__name__]}.keys() - called:
            assert getattr(kind, name) is not getattr(parent, name), name
    assert DPOTrainer.loss_is_scaled_for_ga is False
    assert MODPOTrainer.loss_is_scaled_for_ga is True


def test_constructor_takes_what_we_pass():
    passed = {
        "model",
        "args",
        "data_collator",
        "train_dataset",
        "eval_dataset",
        "processing_class",
        "peft_config",
        "callbacks",
    }
    assert passed <= inspect.signature(DPOTrainer.__init__).parameters.keys()


def test_state_that_we_write_to(tiny_model: Path, tmp_path: Path, plain_descent: dict[str, Any]):
    """`_metrics[mode][name]` are lists that TRL's `log` averages and empties; `_total_train_tokens` is a count."""
    trainer = run(DPOTrainer, tiny_model, tmp_path, plain_descent, lora=True, max_steps=1)
    assert set(trainer._metrics) == {"train", "eval"}
    assert isinstance(trainer._metrics["train"], Mapping)
    assert isinstance(trainer._total_train_tokens, int)
    trainer.model.train()
    trainer._metrics["train"]["rewards/margins"].extend([1.0, 3.0])
    trainer.log({})
    assert trainer.state.log_history[-1]["rewards/margins"] == 2
    assert not trainer._metrics["train"]


def test_the_model_card_cites_modpo(tiny_model: Path, tmp_path: Path, plain_descent: dict[str, Any]):
    """It is written with every checkpoint."""
    run(MODPOTrainer, tiny_model, tmp_path, plain_descent, lora=True, max_steps=1, save_strategy="steps", save_steps=1)
    card = (tmp_path / "MODPOTrainer" / "README.md").read_text()
    assert "trained with MODPO" in card
    assert "[Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization]" in card
    assert "https://huggingface.co/papers/2310.03708" in card
    assert "zhou2024beyond" in card
    assert not any(other in card for other in ("rafailov", "2305.18290", "Secretly a Reward Model"))


def test_experiment_s_training_fields_are_the_config_s():
    """What a YAML file may say under `training` exists, with one meaning, in `MODPOConfig`."""
    known = {field.name for field in dataclasses.fields(MODPOConfig)}
    asked = {field.name for field in dataclasses.fields(TrainingSection)} - {"arguments"}
    assert asked <= known


def test_refused_settings_are_off_by_default(tmp_path: Path):
    """Each is a field of TRL's with the neutral value we name, so that nobody is refused what they did not set."""
    args = DPOConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (args.loss_type, args.loss_weights, args.f_divergence_type) == (["sigmoid"], None, "reverse_kl")
    assert (args.ld_alpha, args.use_weighting, args.sync_ref_model) == (None, False, False)
