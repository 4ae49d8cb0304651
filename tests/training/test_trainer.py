"""`MODPOTrainer` on real rows and a real, small model: what it trains, what it logs, what it refuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from modpo.base.errors import InputError, NumericError
from modpo.base.progress import say_once
from modpo.experiment.primary import REGRESSION
from modpo.experiment.sections import Objective, RewardSection
from modpo.scored.of_rows import score_dataset
from modpo.training.collator import GroupCollator
from modpo.training.config import MODPOConfig
from modpo.training.trainer import MODPOTrainer
from tests.training.runs import LORA, assert_same_training, log_column, logps_of, moved_weights, preference_rows

WEIGHTS = {"better": 0.6, "short": 0.4}
PROMPTS = 8


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def scored(tiny_model: Path, cache: Path) -> Dataset:
    return score_dataset(
        preference_rows(),
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        tokenizer=AutoTokenizer.from_pretrained(tiny_model),
        objectives={"better": Objective("better"), "short": Objective("short")},
        label_sets={"better": "data"},
        max_length=1024,
        cache_dir=cache,
    )


@pytest.fixture
def config(tmp_path: Path, cache: Path, plain_descent: dict[str, Any]) -> Callable[..., MODPOConfig]:

    def make(**settings: Any) -> MODPOConfig:
        quick = {
            **plain_descent,
            "output_dir": str(tmp_path / "run"),
            "cache_dir": str(cache),
            "weights": WEIGHTS,
        }
        return MODPOConfig(**(quick | settings))

    return make


def make_trainer(
    tiny_model: Path, args: MODPOConfig, rows: Dataset, *, lora: bool = True, **arguments: Any
) -> MODPOTrainer:
    return MODPOTrainer(
        arguments.pop("model", None) or AutoModelForCausalLM.from_pretrained(tiny_model),
        args=args,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
        peft_config=LoraConfig(**LORA) if lora else None,
        **arguments,
    )


def trained(tiny_model: Path, args: MODPOConfig, rows: Dataset, **arguments: Any) -> MODPOTrainer:
    trainer = make_trainer(tiny_model, args, rows, **arguments)
    trainer.train()
    return trainer


# --- what it trains on ------------------------------------------------------------------------------------------


def test_first_loss_by_hand(tiny_model: Path, config, scored: Dataset):
    """At step 0 policy and reference are one, so h = -(0.4 / 0.6) (r(chosen) - r(rejected)), with r the row's column.

    So far nothing is known of the weighted sum, hence of objective k it is known that it makes up for the others.

    The loss of the step is the mean over all 15 pairs of w_k * -log sigmoid(h), w_k = 0.6.
    """
    rows = preference_rows()
    margins = torch.tensor(rows["chosen_short"]) - torch.tensor(rows["rejected_short"])
    expected = 0.6 * -F.logsigmoid(-0.4 / 0.6 * margins).mean().item()
    trainer = trained(tiny_model, config(max_steps=1, per_device_train_batch_size=PROMPTS), scored)
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(expected, rel=1e-3)
    assert first["margins/short"] == pytest.approx(margins.mean().item(), rel=1e-4)
    of_chosen = -0.4 / 0.6 * torch.tensor(rows["chosen_short"]).mean().item()
    assert first["rewards/chosen"] == pytest.approx(of_chosen, rel=1e-3)
    assert first["rewards/margins"] == pytest.approx(-0.4 / 0.6 * margins.mean().item(), rel=1e-3)
    assert first["weighted_rewards/chosen"] == pytest.approx(0, abs=1e-3)
    assert first["weighted_rewards/margins"] == pytest.approx(0, abs=1e-3)


def test_objective_k_may_stand_anywhere(tiny_model: Path, config, scored: Dataset):
    first = {"short": 0.4, "better": 0.6}
    assert_same_training(
        trained(tiny_model, config(weights=first, objective="better"), scored), trained(tiny_model, config(), scored)
    )


def test_an_end_point_without_pairs_is_regression_by_hand(tiny_model: Path, config, scored: Dataset):
    """w = (0, 1): at step 0 the loss is 1/2 (r(y) - r(y'))^2, over every two responses of a prompt."""
    twos = [
        (a - b) ** 2 / 2 for row in scored for n, a in enumerate(row["reward/short"]) for b in row["reward/short"][:n]
    ]
    args = config(weights={"better": 0.0, "short": 1.0}, max_steps=1, per_device_train_batch_size=PROMPTS)
    trainer = trained(tiny_model, args, scored)
    assert len(twos) > 15  # more than the pairs
    assert log_column(trainer, "loss")[0] == pytest.approx(sum(twos) / len(twos), rel=1e-3)


def test_regression_reaches_its_targets(tiny_model: Path, config, scored: Dataset):
    """beta times the log-ratio differences become the reward differences: the loss goes to 0, unlike DPO's."""
    args = config(
        weights={"better": 0.0, "short": 1.0},
        max_steps=60,
        per_device_train_batch_size=PROMPTS,
        optim="adamw_torch",
        learning_rate=3e-3,
    )
    losses = log_column(trained(tiny_model, args, scored), "loss")
    assert losses[-1] < 0.05 * losses[0]


def test_two_objectives_with_pairs_in_one_batch(tiny_model: Path, config, cache: Path):
    """Some prompts have pairs of `a`, some of `b`, some of both: each is trained on its own k, by hand at step 0."""
    words = ["yes", "no, never", "perhaps"]
    rows = [
        {
            "prompt": f"Is {i} large? ",
            "responses": words,
            "pairs": pairs,
            "a": [1.0, 0.0, 2.0],
            "b": [0.0, 3.0, 1.0],
        }
        for i, pairs in enumerate([{"A": [[0, 1]]}, {"B": [[1, 2]]}, {"A": [[2, 0]], "B": [[0, 1]]}])
    ]
    objectives = {name: Objective(name, pairs=name.upper(), reward=RewardSection(column=name)) for name in "ab"}
    data = score_dataset(
        Dataset.from_list(rows),
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        tokenizer=AutoTokenizer.from_pretrained(tiny_model),
        objectives=objectives,
        label_sets={"a": "A", "b": "B"},
        max_length=64,
        cache_dir=cache,
    )
    args = config(weights={"a": 0.3, "b": 0.7}, max_steps=1, per_device_train_batch_size=3)
    trainer = trained(tiny_model, args, data, objectives=objectives)

    def loss(w_k: float, w_other: float, difference: float) -> float:
        return w_k * math.log1p(math.exp(w_other / w_k * difference))

    # a's pair (0, 1) has the margin b: 0 - 3; b's pairs (1, 2) and, where both are there, (0, 1) the margin a.
    expected = [loss(0.3, 0.7, -3.0), loss(0.7, 0.3, 0.0 - 2.0), loss(0.7, 0.3, 1.0 - 0.0)]
    assert log_column(trainer, "loss")[0] == pytest.approx(sum(expected) / 3, rel=1e-3)


def test_nothing_to_train_on_is_refused(tiny_model: Path, config, scored: Dataset):
    pairs_only = scored.remove_columns("reward/short").rename_column("pairs/better", "pairs/short")
    with pytest.raises(InputError, match="holds neither pairs nor rewards of better"):
        trained(tiny_model, config(), pairs_only)
    two = pairs_only.add_column("pairs/better", pairs_only["pairs/short"][:])
    with pytest.raises(InputError, match="nothing to train on at this preference vector, in 8 prompts; fix: of better"):
        trained(tiny_model, config(), two)


def test_scale_loss_by_weight_is_w_k(tiny_model: Path, config, scored: Dataset):
    losses = [
        log_column(trained(tiny_model, config(max_steps=1, scale_loss_by_weight=scale), scored), "loss")[0]
        for scale in (True, False)
    ]
    assert losses[0] == pytest.approx(0.6 * losses[1], rel=1e-4)


def test_an_anchor_adds_its_pull(tiny_model: Path, config, scored: Dataset):
    """On a policy that has moved: strength times the mean over pairs of 1/2 (beta (D(chosen) + D(rejected)) / 2)^2."""
    trainer = trained(tiny_model, config(max_steps=6, learning_rate=2e-2), scored)
    (part,) = next(iter(trainer.get_train_dataloader()))["parts"]
    losses = {}
    for anchor in (0.0, 3.0):
        trainer.args.anchor = anchor
        with torch.no_grad(), trainer._hot_path():
            losses[anchor], outputs = trainer.compute_loss(trainer.model, part, return_outputs=True)
    moved = outputs["logps"] - part["ref_logps"]
    means = torch.stack([(moved[chosen] + moved[rejected]) / 2 for chosen, rejected in part["pairs"].tolist()])
    pull = 3 * (0.5 * (0.1 * means).square()).mean()
    assert pull > 1e-5
    torch.testing.assert_close(losses[3.0] - losses[0.0], pull, rtol=1e-2, atol=1e-7)


def test_a_small_weight_of_k_is_trained_by_regression(tiny_model: Path, config, scored: Dataset):
    """`better` has a column of rewards too here."""
    rows = scored.add_column("reward/better", scored["reward/short"][:])
    primaries = []
    for below in (None, 0.5, 0.7):
        trainer = make_trainer(tiny_model, config(regression_below=below), rows)
        (part,) = next(iter(trainer.get_train_dataloader()))["parts"]
        primaries.append(set(part["primaries"].tolist()))
    assert primaries == [{0}, {0}, {REGRESSION}]


def test_a_regression_without_rewards_is_said_to_have_no_effect(
    tiny_model: Path, config, scored: Dataset, capsys: pytest.CaptureFixture[str]
):
    said = []
    for below, rows in (
        (0.5, scored),
        (0.7, scored),
        (0.7, scored.add_column("reward/better", [[0.0] * len(ids) for ids in scored["responses_ids"]])),
    ):
        say_once.cache_clear()
        make_trainer(tiny_model, config(regression_below=below), rows)
        said.append(capsys.readouterr().err.count("regression_below=0.7 has no effect: there is no reward of better"))
    assert said == [0, 1, 0]


def test_rewards_of_the_objective_of_the_pairs_are_said_not_to_be_read(
    tiny_model: Path, config, capsys: pytest.CaptureFixture[str]
):
    more = {"chosen_short": 1.0, "rejected_short": 2.0}
    for columns in ({}, {"chosen_better": 1.0, "rejected_better": 0.0}):
        rows = [{"prompt": f"{i}: ", "chosen": "good", "rejected": "bad", **more, **columns} for i in range(3)]
        make_trainer(tiny_model, config(), Dataset.from_list(rows))
    said = capsys.readouterr().err
    assert said.count("warning: train_dataset: chosen_better and rejected_better not read") == 1


@pytest.mark.parametrize(
    "settings",
    [{"anchor": -1.0}, {"anchor": float("inf")}, {"regression_below": 1.5}, {"beta": 0.0}, {"max_packed_tokens": 0}],
)
def test_strengths_and_weights_that_make_no_sense(config, settings: dict[str, float]):
    with pytest.raises(InputError, match=f"MODPOConfig:{next(iter(settings))}: is"):
        config(**settings)


def test_active_adapters_are_added_up_in_one_product(tiny_model: Path, config, scored: Dataset):
    trainer = make_trainer(tiny_model, config(), scored)
    layers = [module for module in trainer.model.modules() if isinstance(module, LoraLinear)]
    assert layers
    assert all("forward" in layer.__dict__ for layer in layers)


def test_an_objective_s_direction_and_scale_reach_the_margin(tiny_model: Path, config, scored: Dataset):
    """maximize=False and scale 0.5: margins of -0.5 times the column, which h then adds."""
    rows = preference_rows()
    margins = -0.5 * (torch.tensor(rows["chosen_short"]) - torch.tensor(rows["rejected_short"]))
    expected = 0.6 * -F.logsigmoid(-0.4 / 0.6 * margins).mean().item()
    objectives = {"short": Objective("short", maximize=False, scale=0.5, reward=RewardSection(column="short"))}
    args = config(max_steps=1, per_device_train_batch_size=PROMPTS)
    trainer = trained(tiny_model, args, scored, objectives=objectives)
    assert log_column(trainer, "loss")[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge"])
def test_training_lowers_the_loss_and_separates_the_answers(tiny_model: Path, config, scored: Dataset, loss_type: str):
    args = config(max_steps=12, per_device_train_batch_size=PROMPTS, optim="adamw_torch", learning_rate=2e-3)
    args.loss_type = [loss_type]
    trainer = trained(tiny_model, args, scored)
    losses = log_column(trainer, "loss")
    assert losses[-1] < 0.5 * losses[0]
    assert log_column(trainer, "rewards/accuracies")[-1] > 0.9


def test_rows_and_scored_data_train_the_same(tiny_model: Path, config, scored: Dataset):
    """Rows that share a prompt become one group; the column's numbers become the margin."""
    from_rows, from_scored = (trained(tiny_model, config(), data) for data in (preference_rows(), scored))
    assert_same_training(from_rows, from_scored, tolerance=1e-6)
    assert len(from_rows.train_dataset) == len(scored) == PROMPTS


def test_conversational_rows(tiny_model: Path, config):
    def chat(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = preference_rows().map(
        lambda row: {
            "prompt": chat("user", row["prompt"]),
            "chosen": chat("assistant", row["chosen"]),
            "rejected": chat("assistant", row["rejected"]),
        }
    )
    trainer = trained(tiny_model, config(), rows)
    start = trainer.processing_class.decode(trainer.train_dataset[0]["prompt_ids"])
    assert start.startswith("<turn>user\nWhat is rain good for?")
    assert len(log_column(trainer, "loss")) == 3


def test_variables_of_the_chat_template(tiny_model: Path, config):
    """Those of the configuration for all rows, a row's own before them, as TRL's DPOTrainer reads that column."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% if brief %}Be brief.{% endif %}" + tokenizer.chat_template

    def started(rows: list[dict[str, Any]], **settings: Any) -> list[str]:
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        given = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
        trainer = MODPOTrainer(
            model, args=config(weights={"a": 1.0}, **settings), peft_config=LoraConfig(**LORA), **given
        )
        return [tokenizer.decode(ids)[:9] for ids in trainer.train_dataset["prompt_ids"]]

    row = {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Yes"}]}
    row["rejected"] = [{"role": "assistant", "content": "No"}]
    rows = [row | {"chat_template_kwargs": {"brief": flag}} for flag in (True, False)]
    assert started(rows) == ["Be brief.", "<turn>use"]
    assert started([row], chat_template_kwargs={"brief": True}) == ["Be brief."]
    assert started(rows, chat_template_kwargs={"brief": True}) == ["Be brief.", "<turn>use"]
    with pytest.raises(InputError, match=r"chat_template_kwargs.long: the chat template of the model reads no such"):
        started([row], chat_template_kwargs={"long": True})
    with pytest.raises(InputError, match="MODPOConfig:chat_template_kwargs: holds 'tools'"):
        started([row], chat_template_kwargs={"tools": []})


def test_model_by_its_folder(tiny_model: Path, config, scored: Dataset):
    """A folder's name is enough: model and tokenizer are read from it."""
    by_name = MODPOTrainer(str(tiny_model), args=config(), train_dataset=scored, peft_config=LoraConfig(**LORA))
    by_name.train()
    assert_same_training(by_name, trained(tiny_model, config(), scored), tolerance=1e-6)


def test_collator_by_hand():
    """Two groups of 2 and 3 responses: the second group's pairs point behind the first's responses."""
    groups = [
        {
            "prompt_ids": [1, 2],
            "responses_ids": [[3, 4], [5]],
            "pairs/b": [[0, 1]],
            "ref_logps": [-1.0, -2.0],
            "reward/a": [0.5, 0.25],
            "reward/b": [7.0, 8.0],
        },
        {
            "prompt_ids": [6],
            "responses_ids": [[7], [8], [9, 9]],
            "pairs/b": [[2, 0], [1, 0]],
            "ref_logps": [-3.0, -4.0, -5.0],
            "reward/a": [1.0, 2.0, 3.0],
            "reward/b": [9.0, 10.0, 11.0],
        },
    ]
    collator = GroupCollator({"b": 0.5, "a": 0.5}, {"a": -2.0}, packing=False)
    part = collator.part([collator.group(row) for row in groups])
    assert part["pairs"].tolist() == [[0, 1], [4, 2], [3, 2]]
    assert part["primaries"].tolist() == [0, 0, 0]
    assert part["ref_logps"].tolist() == [-1, -2, -3, -4, -5]
    assert part["margins"].tolist() == [[7, -1], [8, -0.5], [9, -2], [10, -4], [11, -6]]
    assert part["prompts_ids"] == [[1, 2], [6]]
    alone = GroupCollator({"b": 1.0})
    packed = alone.part([alone.group(row) for row in groups])
    assert packed["margins"].tolist() == [[7], [8], [9], [10], [11]]
    assert packed["packed_row"].input_ids.tolist() == [[1, 2, 3, 6, 9]]


def test_collator_reads_only_responses_that_are_compared():
    """Of four responses two stand in pairs of the primary objective, b; the other objective's pairs are not read."""
    row = {
        "prompt_ids": [1],
        "responses_ids": [[2], [3], [4], [5]],
        "pairs/a": [[0, 2]],
        "pairs/b": [[3, 1]],
        "ref_logps": [-1.0, -2.0, -3.0, -4.0],
        "reward/a": [0.1, 0.2, 0.3, 0.4],
    }
    group = GroupCollator({"a": 0.4, "b": 0.6}).group(row)
    assert (group.primaries, group.responses_ids, group.ref_logps) == ([1], [[3], [5]], [-2.0, -4.0])
    assert group.pairs == [(1, 0)]
    assert group.margins == [[0.2, 0.0], [0.4, 0.0]]


def test_collator_cuts_a_batch_between_groups():
    """Groups of 3, 3, 9 and 2 packed tokens, at most 6 in a part: 3 + 3, 9 (one group at least), 2."""
    sizes = [3, 3, 9, 2]
    groups = [
        {"prompt_ids": [1] * n, "responses_ids": [[1], [2]], "pairs/a": [[0, 1]], "ref_logps": [0.0, 0.0]}
        for n in sizes
    ]
    parts = GroupCollator({"a": 1.0}, max_packed_tokens=6)(groups)["parts"]
    assert [part["packed_row"].layout.length for part in parts] == [6, 9, 2]


# --- the same training, differently computed --------------------------------------------------------------------


@pytest.mark.parametrize("lora", [True, False], ids=["LoRA", "all weights"])
def test_packed_and_padded_train_the_same(tiny_model: Path, config, scored: Dataset, lora: bool):
    rate = 0.3 if lora else 0.01
    runs = [
        trained(tiny_model, config(packing=packing, learning_rate=rate), scored, lora=lora) for packing in (True, False)
    ]
    assert_same_training(*runs, tolerance=2e-3)
    assert log_column(runs[0], "loss")[0] != pytest.approx(log_column(runs[0], "loss")[-1], rel=0.01)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize(("batch", "steps"), [(2, 2), (1, 4)])
def test_accumulated_batches_train_as_one(tiny_model: Path, config, scored: Dataset, batch: int, steps: int, packing):
    """Prompts carry 1 to 3 pairs: each pair counts alike, in whichever batch of the step it stands."""
    whole = trained(tiny_model, config(packing=packing), scored)
    accumulated = trained(
        tiny_model,
        config(packing=packing, per_device_train_batch_size=batch, gradient_accumulation_steps=steps),
        scored,
    )
    assert_same_training(whole, accumulated)


def test_a_step_at_the_end_of_an_epoch_may_be_smaller(tiny_model: Path, config, scored: Dataset):
    """8 prompts in steps of 6 and 2: the second step's pairs are averaged among themselves."""
    settings = {"max_steps": 4}
    whole = trained(tiny_model, config(per_device_train_batch_size=6, **settings), scored)
    accumulated = trained(
        tiny_model, config(per_device_train_batch_size=2, gradient_accumulation_steps=3, **settings), scored
    )
    assert_same_training(whole, accumulated)


@pytest.mark.parametrize("anchor", [0.0, 1.0])
def test_a_batch_read_in_parts_trains_as_one(tiny_model: Path, config, scored: Dataset, anchor: float):
    """60 tokens hold one prompt, sometimes none: nearly every group is a forward pass of its own."""
    whole, parts = (trained(tiny_model, config(max_packed_tokens=n, anchor=anchor), scored) for n in (10_000, 60))
    assert len(parts.data_collator([scored[i] for i in range(4)])["parts"]) > 2
    assert_same_training(whole, parts)


@pytest.mark.parametrize("lora", [True, False], ids=["LoRA", "all weights"])
def test_gradient_checkpointing_trains_the_same(tiny_model: Path, config, scored: Dataset, lora: bool):
    rate = 0.3 if lora else 0.01
    runs = [
        trained(tiny_model, config(gradient_checkpointing=on, learning_rate=rate), scored, lora=lora)
        for on in (True, False)
    ]
    assert runs[0].model.is_gradient_checkpointing
    assert_same_training(*runs)


def test_mixed_precision(tiny_model: Path, config, scored: Dataset):
    """TRL's default, bfloat16 autocast, stays near float32."""
    mixed = trained(tiny_model, config(bf16=True, learning_rate=0.05), scored)
    assert mixed.accelerator.mixed_precision == "bf16"
    exact = trained(tiny_model, config(learning_rate=0.05), scored)
    assert exact.accelerator.mixed_precision == "no"
    assert log_column(mixed, "loss") == pytest.approx(log_column(exact, "loss"), rel=0.05)
    assert log_column(mixed, "loss") != log_column(exact, "loss")


TRAIN_IN_A_PROCESS = """
import json, sys
from datasets import Dataset
from peft import LoraConfig
from modpo import MODPOConfig, MODPOTrainer

given = json.loads(sys.argv[1])
rows, args = Dataset.from_list(given["rows"]), MODPOConfig(**given["settings"])
trainer = MODPOTrainer(given["model"], args=args, train_dataset=rows, peft_config=LoraConfig(**given["lora"]))
trainer.train()
trainer.save_model(given["output"])
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tiny_model: Path, config, tmp_path: Path):
    """From rows, with an empty cache, and with room for so few tokens that one process would need more passes than the
    other: one scores while the other waits, and neither waits for ever. Their pairs differ in number, and count alike.
    """
    names = ("output_dir", "weights", "max_steps", "optim", "learning_rate", "lr_scheduler_type", "max_grad_norm")
    names += ("logging_steps", "gradient_checkpointing", "bf16", "use_cpu", "report_to", "save_strategy")
    args = config()
    settings = {name: getattr(args, name) for name in names} | {"per_device_train_batch_size": 2}
    settings |= {"cache_dir": str(tmp_path / "cache"), "max_packed_tokens": 140, "optim": "sgd"}
    given = {"rows": preference_rows().to_list(), "lora": LORA, "model": str(tiny_model)}
    given |= {"settings": settings, "output": str(tmp_path / "saved")}
    (tmp_path / "program.py").write_text(TRAIN_IN_A_PROCESS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*launch, str(tmp_path / "program.py"), json.dumps(given, default=str)],
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    together = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    trained(tiny_model, config(), preference_rows()).save_model(str(tmp_path / "alone"))
    alone = load_file(tmp_path / "alone" / "adapter_model.safetensors")
    assert together.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-5)


# --- what it logs ------------------------------------------------------------------------------------------------


def test_evaluation(tiny_model: Path, config, scored: Dataset):
    """Before training, the held-out loss is known by hand, as in training; afterwards it is lower."""
    rows = preference_rows()
    margins = torch.tensor(rows["chosen_short"]) - torch.tensor(rows["rejected_short"])
    expected = 0.6 * -F.logsigmoid(-0.4 / 0.6 * margins).mean().item()
    trainer = MODPOTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        args=config(eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=PROMPTS, learning_rate=0.05),
        train_dataset=scored,
        eval_dataset=scored,
        peft_config=LoraConfig(**LORA),
    )
    before = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(expected, rel=1e-3)
    trainer.train()
    after = next(entry for entry in trainer.state.log_history if entry.get("step") == 3 and "eval_loss" in entry)
    assert after["eval_loss"] < before["eval_loss"]
    names = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "margins/short"]
    assert {f"eval_{name}" for name in [*names, "logps/chosen", "logps/rejected"]} <= after.keys()
    assert after["eval_margins/short"] == pytest.approx(margins.mean().item(), rel=1e-4)


# --- what is computed again ---------------------------------------------------------------------------------------


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_another_beta_weight_and_seed_score_nothing_again(
    tiny_model: Path, config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Numbers per response know nothing of w, beta, the seed or the output folder."""
    cache = tmp_path / "cache"
    trained(tiny_model, config(cache_dir=str(cache)), preference_rows())
    before = files(cache / "scored")
    assert len(before) > 4

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("reference log-probs were computed again")

    monkeypatch.setattr("modpo.forward.frozen.reference_logps", fail)
    other = {"beta": 0.5, "weights": {"better": 0.1, "short": 0.9}, "seed": 7, "output_dir": str(tmp_path / "other")}
    trained(tiny_model, config(cache_dir=str(cache), **other), preference_rows())
    assert files(cache / "scored") == before
    # The guard is one: another model has other log-probs, and is scored.
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.lm_head.weight.data[0, 0] += 1
    with pytest.raises(AssertionError, match="computed again"):
        trained(tiny_model, config(cache_dir=str(cache)), preference_rows(), model=model)


# --- adapters ----------------------------------------------------------------------------------------------------


def test_saved_adapter_loads_with_plain_peft(tiny_model: Path, config, scored: Dataset, tmp_path: Path):
    trainer = trained(tiny_model, config(), scored)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "saved")
    base = logps_of(AutoModelForCausalLM.from_pretrained(tiny_model), scored)
    assert logps_of(loaded, scored) == pytest.approx(logps_of(trainer.model, scored), abs=1e-3)
    assert logps_of(loaded, scored) != pytest.approx(base, abs=0.1)


def test_saved_full_model_loads_with_plain_transformers(tiny_model: Path, config, scored: Dataset, tmp_path: Path):
    trainer = trained(tiny_model, config(learning_rate=0.01), scored, lora=False)
    assert trainer.ref_model is None  # no second model in memory
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    base = logps_of(AutoModelForCausalLM.from_pretrained(tiny_model), scored)
    assert logps_of(loaded, scored) == pytest.approx(logps_of(trainer.model, scored), abs=1e-3)
    assert logps_of(loaded, scored) != pytest.approx(base, abs=0.1)


@pytest.fixture
def adapted(tiny_model: Path) -> PeftModel:
    """An adapter that has been trained already: its B is not 0."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(**LORA))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return model


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_starting_from_an_adapter(
    tiny_model: Path, config, scored: Dataset, tmp_path: Path, adapted: PeftModel, packing: bool
):
    """The reference is the model as it is given, adapter included; one adapter comes out (TRL saves two: trl#5222)."""
    start = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    trainer = trained(tiny_model, config(packing=packing), preference_rows(), lora=False, model=adapted)
    reference = [logp for row in trainer.train_dataset.select(range(3)) for logp in row["ref_logps"]]
    base = [logp for row in scored.select(range(3)) for logp in row["ref_logps"]]
    assert reference != pytest.approx(base, abs=0.1)
    assert log_column(trainer, "weighted_rewards/chosen")[0] == pytest.approx(0, abs=1e-3)
    assert list(trainer.model.peft_config) == ["default"]
    moved = moved_weights(trainer)
    assert moved.keys() == start.keys()
    assert all((tensor - start[name]).abs().max() > 0 for name, tensor in moved.items())

    trainer.save_model(str(tmp_path / "saved"))
    assert [path.relative_to(tmp_path / "saved") for path in (tmp_path / "saved").rglob("*.safetensors")] == [
        Path("adapter_model.safetensors")
    ]
    assert not any(".ref." in name for name in load_file(tmp_path / "saved" / "adapter_model.safetensors"))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "saved")
    assert logps_of(loaded, scored) == pytest.approx(logps_of(trainer.model, scored), abs=1e-3)


def test_checkpoint_holds_no_second_adapter(tiny_model: Path, config, adapted: PeftModel, tmp_path: Path):
    trained(tiny_model, config(save_strategy="steps", save_steps=3), preference_rows(), lora=False, model=adapted)
    found = sorted(path.parent.name for path in (tmp_path / "run").rglob("adapter_model.safetensors"))
    assert found == ["checkpoint-3"]


# --- what stops it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_reference_log_probs_of_another_model_are_refused(tiny_model: Path, config, scored: Dataset, packing: bool):
    """1% more on each log-prob, as another rope setting or an older checkpoint would give: ten times the tolerance."""
    tampered = scored.map(lambda row: {"ref_logps": [1.01 * logp for logp in row["ref_logps"]]})
    with pytest.raises(InputError, match=r"train_dataset:ref_logps: at step 0 .* 1\.0% apart; fix: score the data"):
        trained(tiny_model, config(packing=packing), tampered)


def test_dropout_of_any_kind_is_off(tiny_model: Path, config):
    """Llama's attention dropout is a number, not a layer: with it on, step 0 would not start at the reference."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.3)
    assert model.model.layers[0].self_attn.attention_dropout == 0.3
    for packing in (True, False):
        trainer = trained(tiny_model, config(packing=packing, max_steps=1), preference_rows(), model=model)
        assert log_column(trainer, "weighted_rewards/chosen")[0] == pytest.approx(0, abs=1e-3)
        model = AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.3)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_nan_in_the_weights_stops_training(tiny_model: Path, config, scored: Dataset, packing: bool):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] = math.nan
    with pytest.raises(NumericError, match=r"step 0: the loss of \d+ of \d+ pairs is not finite; fix: "):
        trained(tiny_model, config(packing=packing), scored, model=model)


def test_nan_in_the_weights_stops_scoring(tiny_model: Path, config):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] = math.nan
    with pytest.raises(NumericError, match="a reference log-prob is not finite"):
        trained(tiny_model, config(), preference_rows(), model=model)


class Spoil(TrainerCallback):
    """Puts infinity into one gradient of the second step."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def on_step_begin(self, args, state, control, model, **kwargs) -> None:
        self.weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        if state.global_step == 1:
            parameter = next(p for n, p in model.named_parameters() if "lora_B" in n)
            parameter.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_take_it(tiny_model, config, scored, clip: float):
    spoil = Spoil()
    trainer = MODPOTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        args=config(max_grad_norm=clip),
        train_dataset=scored,
        peft_config=LoraConfig(**LORA),
        callbacks=[spoil],
    )
    with pytest.raises(NumericError, match=r"step 1: a gradient is not finite; fix: lower learning_rate"):
        trainer.train()
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.detach(), spoil.weights[name])


# --- what it refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "ipo"}, "loss_type: is ['ipo']; fix: use one of sigmoid, hinge"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1]}, "loss_type: is ['sigmoid', 'sft']"),
        ({"loss_weights": [0.5]}, "loss_weights: is [0.5]; fix: leave it at None"),
        ({"f_divergence_type": "js_divergence"}, "f_divergence_type: is 'js_divergence'; fix: leave it at"),
        ({"ld_alpha": 0.5}, "ld_alpha: is 0.5; fix: leave it at None"),
        ({"use_weighting": True}, "use_weighting: is True; fix: leave it at False"),
        ({"sync_ref_model": True}, "sync_ref_model: is True; fix: leave it at False"),
        ({"weights": {}}, "weights: is {}; fix: give"),
        ({"weights": {"better": 0.6, "short": 0.6}}, "weights: weights sum to 1.2, not 1"),
        ({"weights": {"better": 1.5, "short": -0.5}}, "weights.short: -0.5 is negative"),
        ({"weights": {"better": math.nan, "short": 1.0}}, "weights.better: nan is not finite"),
        ({"objective": "kind"}, "objective: unknown objective 'kind'"),
    ],
)
def test_refused_settings(config, settings: dict[str, Any], message: str):
    with pytest.raises(InputError) as caught:
        config(**settings)
    assert f"MODPOConfig:{message}" in str(caught.value)


def test_everything_that_is_wrong_is_said_at_once(config):
    with pytest.raises(InputError) as caught:
        config(loss_type="ipo", ld_alpha=0.5, objective="kind")
    assert [problem.field for problem in caught.value.problems] == ["objective", "loss_type", "ld_alpha"]


def test_rows_without_the_margin_s_numbers_are_refused(tiny_model: Path, config):
    rows = preference_rows().remove_columns("rejected_short")
    with pytest.raises(InputError, match="give chosen_short and rejected_short"):
        trained(tiny_model, config(), rows)


def test_scored_data_without_the_margin_s_column_is_refused(tiny_model: Path, config, scored: Dataset):
    with pytest.raises(
        InputError, match=r"train_dataset:reward/short: holds neither pairs nor rewards of short; fix: score"
    ):
        trained(tiny_model, config(), scored.remove_columns("reward/short"))


def test_a_model_that_cannot_be_packed_is_refused_before_anything_is_scored(tiny_model: Path, config, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.sliding_window = 8
    with pytest.raises(InputError, match="slides over a window of 8 tokens; fix: set `packing: false`"):
        trained(tiny_model, config(packing=True, cache_dir=str(tmp_path / "cache")), preference_rows(), model=model)
    assert not (tmp_path / "cache").exists()


def test_settings_survive_being_written(config):
    """What `training_args` say is JSON: weights by name, nothing tied to a machine."""
    saved = json.loads(config().to_json_string())
    assert saved["weights"] == WEIGHTS
    assert saved["objective"] is None
