"""Whoever comes from TRL: no field of DPOConfig and no argument of DPOTrainer is without effect, and unsaid."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EvalPrediction,
    HfArgumentParser,
    ProcessorMixin,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, TrlParser

from modpo.base.errors import InputError
from modpo.base.progress import say_once
from modpo.experiment.sections import Objective
from modpo.training.config import MODPOConfig
from modpo.training.trainer import MODPOTrainer
from modpo.training.trl_settings import REFUSED, WITHOUT_EFFECT
from tests.training import dpo_fields
from tests.training.runs import LORA, log_column

ROWS = [{"prompt": f"Question {i}: ", "chosen": "because " * (i % 3 + 1), "rejected": "no" + "!" * i} for i in range(8)]

Make = Callable[..., DPOTrainer]


@pytest.fixture
def make(tmp_path: Path, tiny_model: Path, plain_descent: dict[str, Any]) -> Make:
    """A trainer of either kind, with settings of its config and arguments of its own."""

    def make(kind: type[DPOTrainer] = MODPOTrainer, settings: dict[str, Any] | None = None, **given: Any) -> DPOTrainer:
        shared = plain_descent | {"output_dir": str(tmp_path / kind.__name__)} | (settings or {})
        config = (
            MODPOConfig(**shared, cache_dir=str(tmp_path / "cache")) if kind is MODPOTrainer else DPOConfig(**shared)
        )
        arguments = {
            "model": AutoModelForCausalLM.from_pretrained(tiny_model),
            "args": config,
            "train_dataset": Dataset.from_list(ROWS),
            "processing_class": AutoTokenizer.from_pretrained(tiny_model),
            "peft_config": LoraConfig(**LORA),
        }
        return kind(**(arguments | given))

    return make


# --- nothing is unknown -------------------------------------------------------------------------------------------


def test_every_field_of_dpo_config_is_known() -> None:
    lists = [
        list(dpo_fields.HONOURED),
        list(REFUSED),
        list(WITHOUT_EFFECT),
        dpo_fields.READ_HERE.split(),
        dpo_fields.TRANSFORMERS.split(),
    ]
    known = [name for names in lists for name in names]
    assert len(known) == len(set(known))
    assert set(known) == {field.name for field in dataclasses.fields(DPOConfig)}


def test_every_argument_of_dpo_trainer_is_known() -> None:
    assert set(dpo_fields.ARGUMENTS) == {*inspect.signature(DPOTrainer.__init__).parameters} - {"self"}


def test_arguments_stand_in_trl_s_order_with_trl_s_defaults() -> None:
    theirs, ours = (inspect.signature(kind.__init__).parameters for kind in (DPOTrainer, MODPOTrainer))
    positional = {n: p for n, p in ours.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY}
    assert [(n, p.default) for n, p in positional.items()] == [(n, p.default) for n, p in theirs.items()]
    assert ours.keys() - theirs.keys() == {"objectives", "calibrations"}


def test_defaults_of_dpo_config_are_kept(tmp_path: Path) -> None:
    theirs, ours = (kind(output_dir=str(tmp_path), use_cpu=True) for kind in (DPOConfig, MODPOConfig))
    for field in dataclasses.fields(DPOConfig):
        if field.name not in ("logging_dir", "run_name"):
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


# --- what has no effect is said, what would be wrong is refused -----------------------------------------------------


OTHER_VALUES = {
    "dataset_num_proc": 2,
    "precompute_ref_batch_size": 4,
    "padding_free": True,
    "label_smoothing": 0.1,
    "label_smoothing_factor": 0.1,
    "f_alpha_divergence_coef": 0.7,
    "discopop_tau": 0.1,
    "ref_model_mixup_alpha": 0.5,
    "ref_model_sync_steps": 3,
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_setting_without_effect_is_said(make: Make, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """And it has none: the losses are those without it."""
    say_once.cache_clear()
    trainer, plain = make(settings={name: OTHER_VALUES[name]}), make()
    said = capsys.readouterr().err
    assert said.count(f"warning: {name}={OTHER_VALUES[name]!r} has no effect: ") == 1
    assert said.count("has no effect") == 1  # of what is left at its default nothing is said
    trainer.train()
    plain.train()
    assert log_column(trainer, "loss") == log_column(plain, "loss")


@pytest.mark.parametrize("name", ["label_smoothing", "label_smoothing_factor", "discopop_tau"])
def test_it_has_none_in_trl_either(make: Make, name: str) -> None:
    given, plain = make(DPOTrainer, settings={name: OTHER_VALUES[name]}), make(DPOTrainer)
    given.train()
    plain.train()
    assert log_column(given, "loss") == log_column(plain, "loss")


@pytest.mark.filterwarnings("ignore:The `'keep_end'`")
def test_refused_settings_accept_their_defaults_and_nothing_else(tmp_path: Path) -> None:
    other = {
        "loss_weights": [0.5],
        "f_divergence_type": "js_divergence",
        "ld_alpha": 0.5,
        "use_weighting": True,
        "sync_ref_model": True,
        "truncation_mode": "keep_end",
    }
    assert other.keys() == REFUSED.keys()
    for name, (accepted, _) in REFUSED.items():
        (default,) = (field.default for field in dataclasses.fields(DPOConfig) if field.name == name)
        assert accepted[0] == default
        for value in accepted:
            MODPOConfig(output_dir=str(tmp_path), **{name: value})
        with pytest.raises(InputError, match=rf"^MODPOConfig:{name}: is .*; fix: leave it at "):
            MODPOConfig(output_dir=str(tmp_path), **{name: other[name]})


def test_activation_offloading_is_refused_without_an_accelerator(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MODPOConfig:activation_offloading: there is no accelerator"):
        MODPOConfig(output_dir=str(tmp_path), activation_offloading=True, use_cpu=True)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"data_collator": list}, ValueError, "MODPOTrainer:data_collator: is a type; fix: leave it out"),
        ({"args": DPOConfig}, TypeError, "MODPOTrainer:args: is a DPOConfig; fix: give a modpo.MODPOConfig"),
        ({"processing_class": ProcessorMixin()}, TypeError, "processing_class: is a ProcessorMixin; fix: give"),
        ({"ref_model": 1}, TypeError, "ref_model: is a int; fix: give a model or its name; the second argument is"),
        ({"train_dataset": None}, ValueError, "`train_dataset` is required"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_refused_arguments(make: Make, tmp_path: Path, arguments: dict[str, Any], kind: type, message: str) -> None:
    """By one line, which a script of TRL catches as what TRL raises."""
    if arguments.get("args"):
        arguments = {"args": DPOConfig(output_dir=str(tmp_path), use_cpu=True)}
    with pytest.raises(InputError) as caught:
        make(**arguments)
    assert isinstance(caught.value, kind)
    assert message in str(caught.value)


def test_a_model_that_is_its_own_reference_is_refused(make: Make, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(ValueError, match="ref_model: is the same object as `model`; fix: leave ref_model out"):
        make(model=model, ref_model=model)


def test_objectives_without_any_weight_are_refused(make: Make) -> None:
    with pytest.raises(InputError, match="objectives: none of kind has a weight: those with one are preference; fix"):
        make(objectives={"kind": Objective("kind")})


# --- effect of --------------------------------------------------------------------------------------------------------


def test_args_and_weights_left_out_are_dpo(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODPO_CACHE", str(tmp_path / "cache"))
    trainer = MODPOTrainer(str(tiny_model), train_dataset=Dataset.from_list(ROWS))
    assert isinstance(trainer.args, MODPOConfig)
    assert (trainer.args.output_dir, trainer.args.vector) == ("tiny-MODPO", {"preference": 1.0})
    ours, theirs = make(), make(DPOTrainer)
    ours.train()
    theirs.train()
    assert log_column(ours, "loss") == pytest.approx(log_column(theirs, "loss"), abs=1e-5)


def test_the_named_objective_is_the_one_with_the_weight(tmp_path: Path) -> None:
    assert MODPOConfig(output_dir=str(tmp_path), objective="kind").vector == {"kind": 1.0}


def test_positional_arguments_are_trl_s(tiny_model: Path, tmp_path: Path, plain_descent: dict[str, Any]) -> None:
    args = MODPOConfig(**plain_descent, output_dir=str(tmp_path), cache_dir=str(tmp_path))
    rows = Dataset.from_list(ROWS)
    trainer = MODPOTrainer(AutoModelForCausalLM.from_pretrained(tiny_model), None, args, None, rows, rows)
    assert len(trainer.train_dataset) == len(trainer.eval_dataset) == len(ROWS)


def test_the_user_s_args_stay_what_they_are(make: Make, tiny_model: Path) -> None:
    settings = {"model_init_kwargs": {"dtype": "float32"}, "precompute_ref_log_probs": True}
    trainer = make(model=str(tiny_model), settings=settings, peft_config=None)
    assert {name: getattr(trainer.args, name) for name in settings} == settings


WEIGHTS = {"kind": 0.75, "short": 0.25}


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
def test_weights_on_a_command_line_are_json(parser: Any, tmp_path: Path) -> None:
    given = ["--output_dir", str(tmp_path), "--weights", json.dumps(WEIGHTS), "--use_cpu", "true"]
    given += ["--chat_template_kwargs", '{"enable_thinking": false}']
    (args,) = parser(MODPOConfig).parse_args_into_dataclasses(given)[:1]
    assert args.vector == WEIGHTS
    assert args.template_kwargs == {"enable_thinking": False}


def test_weights_in_a_file_of_trl_parser(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"output_dir: {tmp_path}\nweights: {json.dumps(WEIGHTS)}\n")
    (args,) = TrlParser(MODPOConfig).parse_args_and_config(["--config", str(tmp_path / "config.yaml")])
    assert args.vector == WEIGHTS


@pytest.mark.parametrize("text", ["kind=1", "{kind: 1", "0.5", '["kind"]', '{"kind": "much"}'])
def test_weights_that_are_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^MODPOConfig:weights"):
        MODPOConfig(output_dir=str(tmp_path), weights=text)


@pytest.mark.parametrize("multiple", [None, 64])
def test_pad_to_multiple_of_pads(make: Make, monkeypatch: pytest.MonkeyPatch, multiple: int | None) -> None:
    """The widths that the model reads, and no other loss."""
    widths = set()
    trainer = make(settings={"pad_to_multiple_of": multiple, "packing": False})
    trainer.model.get_base_model().register_forward_pre_hook(
        lambda module, args, kwargs: widths.add(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    trainer.train()
    assert (widths == {64}) is (multiple == 64)
    theirs = make(DPOTrainer)
    theirs.train()
    assert log_column(trainer, "loss") == pytest.approx(log_column(theirs, "loss"), abs=1e-5)


def test_packed_rows_have_no_padding_and_it_is_said(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    say_once.cache_clear()
    make(settings={"pad_to_multiple_of": 8, "packing": True})
    assert "warning: pad_to_multiple_of=8 has no effect: packed rows have no padding" in capsys.readouterr().err


def test_max_length_cuts(make: Make) -> None:
    longest = {
        n: max(
            len(row["prompt_ids"]) + max(map(len, row["responses_ids"]))
            for row in make(settings={"max_length": n}).train_dataset
        )
        for n in (16, 64)
    }
    assert longest[16] == 16 < longest[64]
    whole = make(settings={"max_length": None})
    assert max(len(row["responses_ids"][0]) for row in whole.train_dataset) == len("because " * 3) + 1


class Count(TrainerCallback):
    steps = 0

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        self.steps += 1


def test_callbacks_and_optimizers(make: Make, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    count = Count()
    trainer = make(model=model, peft_config=None, callbacks=[count], optimizers=(optimizer, None))
    trainer.train()
    assert count.steps == 3
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())  # its rate is 0


def test_loss_weights_of_one_is_the_loss(make: Make) -> None:
    trainers = [make(settings={"loss_weights": weights}) for weights in ([1.0], None)]
    for trainer in trainers:
        trainer.train()
    assert log_column(trainers[0], "loss") == log_column(trainers[1], "loss")


@pytest.mark.parametrize("remove", [True, False])
def test_remove_unused_columns_leaves_what_is_read(make: Make, remove: bool) -> None:
    trainer, plain = make(settings={"remove_unused_columns": remove}), make()
    trainer.train()
    plain.train()
    assert log_column(trainer, "loss") == log_column(plain, "loss")


@pytest.mark.parametrize("strategy", ["sequential", "random"])
def test_train_sampling_strategy(make: Make, strategy: str) -> None:
    settings = {"train_sampling_strategy": strategy, "per_device_train_batch_size": 2}
    ours, theirs = make(settings=settings), make(DPOTrainer, settings=settings)
    ours.train()
    theirs.train()
    assert log_column(ours, "logps/chosen") == pytest.approx(log_column(theirs, "logps/chosen"), rel=1e-5)


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_rows_of_like_length_can_be_read_together(make: Make, strategy: str) -> None:
    """TRL's own rows have no lengths that transformers finds; scored ones are given theirs."""
    trainer = make(settings={"train_sampling_strategy": strategy, "per_device_train_batch_size": 2})
    rows = trainer.train_dataset
    lengths = [len(row["prompt_ids"]) + max(map(len, row["responses_ids"])) for row in rows]
    batches = list(trainer._get_train_sampler())
    order = [i for batch in batches for i in batch] if strategy == "batch_rebalance" else batches
    assert sorted(order) == list(range(len(rows)))
    if strategy == "group_by_length":
        assert lengths[order[0]] == max(lengths)
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(0.693147, abs=1e-5)
    trainer.train()
    assert trainer.state.global_step == trainer.args.max_steps


@pytest.mark.parametrize("lora", [True, False], ids=["LoRA", "all weights"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_mixed_precision_starts_at_the_reference(make: Make, lora: bool, packing: bool) -> None:
    """The reference is read in the number format that the policy is read in: at step 0 nothing is won or lost.

    But for rounding, where rows that are padded together are read by other kernels than one alone.
    """
    peft_config = LoraConfig(**LORA) if lora else None
    trainer = make(settings={"bf16": True, "packing": packing, "max_steps": 1}, peft_config=peft_config)
    trainer.train()
    assert log_column(trainer, "loss")[0] == pytest.approx(0.693147, abs=1e-5 if packing else 1.5e-3)


def test_what_compute_metrics_is_given_besides(make: Make) -> None:
    """Inputs and losses, and batch by batch."""
    seen: list[EvalPrediction] = []

    def look(found: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        seen.append(found)
        return {"batches": float(len(seen))}

    settings = {"per_device_eval_batch_size": 4, "include_for_metrics": ["inputs", "loss"], "batch_eval_metrics": True}
    trainer = make(settings=settings, compute_metrics=look, eval_dataset=Dataset.from_list(ROWS))
    assert trainer.evaluate()["eval_batches"] == 2
    assert [found.inputs["input_ids"].shape[0] for found in seen] == [8, 8]
    assert all(found.losses is not None for found in seen)
    trainer.args.batch_eval_metrics = False
    seen.clear()
    trainer.evaluate()
    (whole,) = seen
    assert whole.inputs.shape[0] == whole.predictions.shape[0] == 16
    assert (whole.inputs == whole.label_ids).all()


def test_predict_returns_logits(make: Make) -> None:
    trainer = make()
    found = trainer.predict(Dataset.from_list(ROWS))
    assert found.predictions.shape[:2] == found.label_ids.shape
    assert found.metrics["test_loss"] == pytest.approx(0.693147, abs=1e-5)


def test_what_is_refused_or_without_effect_is_documented() -> None:
    """docs/trl.md: each has its place in a table of it."""
    text = (Path(__file__).parents[2] / "docs" / "trl.md").read_text("utf-8")
    named = {name for line in text.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert {*REFUSED, *WITHOUT_EFFECT, *dpo_fields.ARGUMENTS, "loss_type", "pad_to_multiple_of"} <= named
