"""What a trainer takes as data sets, when it is made and later, and the reference that scores them: as TRL does."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from modpo.base.errors import InputError
from modpo.training.config import MODPOConfig
from modpo.training.trainer import MODPOTrainer
from tests.training.runs import LORA, log_column

METRICS = ["eval_loss", "eval_rewards/chosen", "eval_rewards/margins", "eval_logps/chosen"]


def row(i: int) -> dict[str, str]:
    return {"prompt": f"Question {i}: ", "chosen": "because " * (i % 3 + 1), "rejected": "no" + "!" * (i % 5)}


TRAIN, HELD_OUT, LATER = ([row(i) for i in numbers] for numbers in (range(8), range(20, 25), range(30, 36)))


def stream(rows: list[dict[str, str]]) -> IterableDataset:
    return Dataset.from_list(rows).to_iterable_dataset()


@pytest.fixture
def make(tmp_path: Path, tiny_model: Path, plain_descent: dict[str, Any]) -> Callable[..., DPOTrainer]:
    def make(kind: type[DPOTrainer] = MODPOTrainer, settings: dict[str, Any] | None = None, **given: Any) -> DPOTrainer:
        shared = plain_descent | {"output_dir": str(tmp_path / kind.__name__)} | (settings or {})
        config = (
            MODPOConfig(**shared, cache_dir=str(tmp_path / "cache")) if kind is MODPOTrainer else DPOConfig(**shared)
        )
        arguments = {"model": str(tiny_model), "train_dataset": Dataset.from_list(TRAIN)}
        return kind(args=config, **(arguments | given))

    return make


def metrics(found: dict[str, float], prefix: str = "eval") -> dict[str, float]:
    return {name: found[name.replace("eval_", f"{prefix}_", 1)] for name in METRICS}


# --- kinds of data sets -------------------------------------------------------------------------------------------


KINDS: dict[str, Callable[[list[dict[str, str]]], Any]] = {
    "Dataset": Dataset.from_list,
    "IterableDataset": stream,
    "list": list,
    "torch format": lambda rows: Dataset.from_list(rows).with_format("torch"),
}
SEVERAL: dict[str, Callable[[Any], Any]] = {
    "dict": lambda make: {"first": make(HELD_OUT), "second": make(LATER)},
    "DatasetDict": lambda make: DatasetDict(first=Dataset.from_list(HELD_OUT), second=Dataset.from_list(LATER)),
    "IterableDatasetDict": lambda make: IterableDatasetDict(first=stream(HELD_OUT), second=stream(LATER)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["made with it", "later"])
def test_one_data_set_to_evaluate(make, kind: str, when: str) -> None:
    rows = KINDS[kind](HELD_OUT)
    trainer = make(eval_dataset=rows) if when == "made with it" else make()
    found = trainer.evaluate() if when == "made with it" else trainer.evaluate(rows)
    assert metrics(found) == pytest.approx(
        metrics(make(DPOTrainer).evaluate(Dataset.from_list(HELD_OUT))), rel=1e-6, abs=1e-5
    )


@pytest.mark.parametrize("several", SEVERAL)
@pytest.mark.parametrize("when", ["made with them", "later"])
def test_several_data_sets_to_evaluate(make, several: str, when: str) -> None:
    given = SEVERAL[several](stream)
    trainer = make(eval_dataset=given) if when == "made with them" else make()
    found = trainer.evaluate() if when == "made with them" else trainer.evaluate(given)
    theirs = make(DPOTrainer).evaluate(SEVERAL["dict"](Dataset.from_list))
    names = [f"eval_{split}_loss" for split in ("first", "second")]
    assert {name: found[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, abs=1e-5)
    assert names[0] in found.keys() - {names[1]}


def test_several_while_training(make) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 3}
    trainer = make(settings=settings, eval_dataset=SEVERAL["dict"](Dataset.from_list))
    trainer.train()
    assert len(log_column(trainer, "eval_first_loss")) == len(log_column(trainer, "eval_second_loss")) == 1
    assert trainer.evaluate("second")["eval_loss"] == pytest.approx(log_column(trainer, "eval_second_loss")[0])


def test_scored_data_goes_wherever_rows_go(make) -> None:
    scored = make(eval_dataset=Dataset.from_list(HELD_OUT))
    again = make(train_dataset=scored.train_dataset, eval_dataset={"a": scored.eval_dataset})
    again.train()
    assert again.evaluate()["eval_a_loss"] == again.evaluate(scored.eval_dataset)["eval_loss"]


@pytest.mark.parametrize("given", ["a name", {"prompt": ["a"]}, [1, 2], [], (row(1),)])
@pytest.mark.parametrize("field", ["train_dataset", "eval_dataset"])
def test_what_is_no_data_set_is_refused_before_a_model_is_loaded(make, field: str, given: Any) -> None:
    with pytest.raises(TypeError, match=rf"^MODPOTrainer:{field}.* must be a `Dataset` or `IterableDataset`"):
        make(**{field: given}, model="nowhere")


# --- streams --------------------------------------------------------------------------------------------------------


def test_a_stream_trains_as_trl_trains_on_it(make, capsys: pytest.CaptureFixture[str]) -> None:
    """In its order, without a shuffle; and it is scored once."""
    ours, theirs = (make(kind, train_dataset=stream(TRAIN)) for kind in (MODPOTrainer, DPOTrainer))
    assert "train_dataset: a stream, of which all its 8 rows, are taken in and scored once" in capsys.readouterr().err
    for trainer in (ours, theirs):
        trainer.train()
    assert log_column(ours, "loss") == pytest.approx(log_column(theirs, "loss"), abs=1e-5)
    assert log_column(ours, "logps/chosen") == pytest.approx(log_column(theirs, "logps/chosen"), rel=1e-5)


def test_of_an_endless_stream_as_much_is_taken_as_is_trained_on(make) -> None:
    """max_steps 3, batches of 4, 2 to a step."""
    read = 0

    def endless() -> Iterator[dict[str, str]]:
        nonlocal read
        for i in itertools.count():
            read = i + 1
            yield row(i)

    settings = {"gradient_accumulation_steps": 2}
    trainer = make(settings=settings, train_dataset=IterableDataset.from_generator(endless))
    assert len(trainer.train_dataset) == 3 * 4 * 2
    assert read <= 3 * 4 * 2 + 1
    trainer.train()
    assert trainer.state.epoch == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (
            {"max_steps": -1},
            {"train_dataset": stream(TRAIN)},
            "train_dataset: is a stream, whose end is not known; fix",
        ),
        ({}, {"train_dataset": stream(TRAIN).filter(lambda row: False)}, "the stream holds no rows"),
        (
            {"precompute_ref_log_probs": True},
            {"train_dataset": stream(TRAIN)},
            "train_dataset: `precompute_ref_log_prob",
        ),
        ({"precompute_ref_log_probs": True}, {"eval_dataset": {"a": stream(TRAIN)}}, "eval_dataset['a']: `precompute"),
    ],
)
def test_streams_that_are_refused(make, settings: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(settings=settings, **given, model="nowhere")


# --- the reference ---------------------------------------------------------------------------------------------------


def adapted(tiny_model: Path) -> PeftModel:
    """Adapters that do something: the reference is the model with them."""
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(**LORA))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def other(tiny_model: Path) -> Any:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


POLICIES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "all weights": lambda _: {},
    "all weights, in memory": lambda folder: {"model": AutoModelForCausalLM.from_pretrained(folder)},
    "LoRA": lambda _: {"peft_config": LoraConfig(**LORA)},
    "LoRA that does not start at 0": lambda _: {"peft_config": LoraConfig(**LORA, init_lora_weights=False)},
    "adapters with biases": lambda _: {"peft_config": LoraConfig(**LORA, bias="all")},
    "adapters given": lambda folder: {"model": adapted(folder)},
    "a reference of its own": lambda folder: {"ref_model": other(folder)},
    "adapters and a reference": lambda folder: {
        "model": adapted(folder),
        "ref_model": AutoModelForCausalLM.from_pretrained(folder),
    },
}


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("policy", POLICIES)
def test_rows_that_come_after_training_are_scored_by_the_reference(
    make, tiny_model, policy: str, packing: bool
) -> None:
    """Losses of every step, and what rows that were never seen before are worth then: as in TRL."""
    found = {}
    for kind in (DPOTrainer, MODPOTrainer):
        settings = {"learning_rate": 0.05} | ({"packing": packing} if kind is MODPOTrainer else {})
        trainer = make(kind, settings=settings, **POLICIES[policy](tiny_model))
        trainer.train()
        later = metrics(trainer.evaluate(Dataset.from_list(LATER)))
        found[kind] = {f"loss {n}": loss for n, loss in enumerate(log_column(trainer, "loss"))} | later
    assert found[MODPOTrainer] == pytest.approx(found[DPOTrainer], rel=1e-4, abs=2e-5)
    assert abs(found[MODPOTrainer]["eval_rewards/margins"]) > 1e-4


def test_a_reference_by_name(make, tiny_model: Path, tmp_path: Path) -> None:
    model, folder = other(tiny_model), tmp_path / "other"
    model.save_pretrained(folder)
    by_name, by_model = (make(ref_model=given) for given in (str(folder), model))
    for trainer in (by_name, by_model):
        trainer.train()
    assert log_column(by_name, "loss") == log_column(by_model, "loss")
    assert log_column(by_name, "loss")[0] != pytest.approx(0.6931, abs=1e-3)
    kept, given = (m.parameters() for m in (by_model.ref_model, other(tiny_model)))
    assert all(torch.equal(a, b) for a, b in zip(kept, given, strict=True))


def test_adapters_that_change_their_base_keep_its_log_probs(make) -> None:
    """PiSSA takes a part out of the base: the reference is the model as it was given, and again later."""
    trainer = make(peft_config=LoraConfig(**LORA, init_lora_weights="pissa"))
    before = trainer.evaluate(Dataset.from_list(LATER))
    trainer.train()
    assert log_column(trainer, "loss")[0] == pytest.approx(0.693147, abs=1e-4)
    assert before["eval_rewards/chosen"] == pytest.approx(0, abs=1e-3)
    expected = make().evaluate(Dataset.from_list(LATER))["eval_logps/chosen"]
    after = trainer.evaluate(Dataset.from_list(LATER))
    moved = (after["eval_logps/chosen"] - expected) * trainer.beta
    assert after["eval_rewards/chosen"] == pytest.approx(moved, abs=1e-4)
    assert abs(moved) > 1e-3


def test_the_policy_is_what_it_was_when_later_rows_were_scored(make, tiny_model: Path) -> None:
    trainer = make(model=adapted(tiny_model))
    trainer.train()
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.evaluate(Dataset.from_list(LATER))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trainer.model.state_dict().items())


def test_a_model_changed_in_memory_is_no_reference_later(make, tiny_model: Path) -> None:
    """Its folder holds another model: what cannot be had again is said, and rows given in time are right."""
    trainer = make(model=other(tiny_model), eval_dataset=Dataset.from_list(LATER))
    trainer.evaluate(Dataset.from_list(HELD_OUT))
    trainer.train()
    assert trainer.evaluate()["eval_rewards/chosen"] != 0
    with pytest.raises(
        ValueError, match=r"MODPOTrainer:eval_dataset: the reference that can be had now is another one"
    ):
        trainer.evaluate(Dataset.from_list(HELD_OUT))
    # What is scored already needs no reference.
    assert trainer.evaluate(trainer.eval_dataset)["eval_loss"] == trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize("came_from", ["", "gone/from/here"])
def test_a_model_that_cannot_be_read_again_is_no_reference_later(make, tiny_model: Path, came_from: str) -> None:
    """One made in memory, or whose folder is gone: it is its rows that come too late."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config._name_or_path = came_from
    trainer = make(model=model, processing_class=AutoTokenizer.from_pretrained(tiny_model))
    trainer.evaluate(Dataset.from_list(LATER))
    trainer.train()
    with pytest.raises(ValueError, match=r"MODPOTrainer:eval_dataset: .*; fix: give these rows as eval_dataset when"):
        trainer.evaluate(Dataset.from_list(LATER))


def test_precompute_ref_log_probs_reads_no_model_again(make) -> None:
    trainer = make(settings={"precompute_ref_log_probs": True})
    trainer.evaluate(Dataset.from_list(LATER))
    trainer.train()
    with pytest.raises(InputError, match="Cannot compute reference log-probs for a dataset passed to `evaluate"):
        trainer.evaluate(Dataset.from_list(LATER))


def test_what_adapters_make_of_a_model_has_a_key_of_its_own(make, tiny_model: Path) -> None:
    """A trained policy as the next reference: the log-probs that it had without its adapters are not taken for its."""
    first = make(peft_config=LoraConfig(**LORA), settings={"learning_rate": 0.5})
    first.train()
    without = first.evaluate(Dataset.from_list(LATER))
    again = make(model=first.model, train_dataset=Dataset.from_list(LATER))
    assert again.evaluate(Dataset.from_list(LATER))["eval_rewards/chosen"] == pytest.approx(0, abs=1e-3)
    assert abs(without["eval_rewards/chosen"]) > 1e-2


def test_a_checkpoint_of_trl_s_kind_goes_on(make, tiny_model: Path, tmp_path: Path) -> None:
    """`resume_from_checkpoint` of a trainer on a stream and a reference of its own: the same weights."""

    def given(folder: str) -> dict[str, Any]:
        settings = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / folder)}
        return {"settings": settings, "train_dataset": stream(TRAIN), "ref_model": other(tiny_model)}

    whole, part = make(**given("whole")), make(**given("part"))
    whole.train()
    part.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), part.model.parameters(), strict=True))


def test_the_tokenizer_of_the_trainer_is_the_user_s(make, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{{ messages }}"
    assert make(processing_class=tokenizer).processing_class is tokenizer


# --- prompts that leave no room ------------------------------------------------------------------------------------

LONG = {"prompt": "A question that goes on and on: ", "chosen": "because ", "rejected": "no"}


def test_a_prompt_that_fills_max_length_is_left_out_as_in_trl(make, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Dataset.from_list([*TRAIN[:4], LONG, *TRAIN[4:]])
    settings = {"max_length": 18, "per_device_train_batch_size": 8}
    ours, theirs = (make(kind, settings=settings, train_dataset=rows) for kind in (MODPOTrainer, DPOTrainer))
    assert len(ours.train_dataset) == len(theirs.train_dataset) == len(TRAIN)
    assert "1 prompts that fill `max_length` 18 are left out, as in TRL" in capsys.readouterr().err
    for trainer in (ours, theirs):
        trainer.train()
    assert log_column(ours, "loss") == pytest.approx(log_column(theirs, "loss"), abs=1e-5)


def test_a_prompt_is_cut_where_max_prompt_length_asks_for_it(make) -> None:
    trainer = make(settings={"max_length": 18}, train_dataset=Dataset.from_list([*TRAIN, LONG]))
    assert max(map(len, trainer.train_dataset["prompt_ids"])) < 18
    cut = MODPOConfig(max_length=18, max_prompt_length=10, output_dir=trainer.args.output_dir)
    trainer = MODPOTrainer(trainer.model, args=cut, train_dataset=Dataset.from_list([*TRAIN, LONG]))
    assert len(trainer.train_dataset) == len(TRAIN) + 1
    assert max(map(len, trainer.train_dataset["prompt_ids"])) == 10


def test_prompts_that_all_fill_max_length_are_refused(make) -> None:
    with pytest.raises(InputError, match="train_dataset:max_length: every prompt has 12 tokens or more; fix: raise"):
        make(settings={"max_length": 12}, train_dataset=Dataset.from_list([LONG]))
