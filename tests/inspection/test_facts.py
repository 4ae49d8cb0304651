"""What `modpo inspect` finds, in numbers that are worked out by hand. The tiny model has one token a byte."""

from __future__ import annotations

import dataclasses
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modpo.base.errors import InputError, NumericError
from modpo.cli import main
from modpo.experiment.sections import (
    ComparisonSection,
    DataSection,
    EvaluationSection,
    Experiment,
    LoraSection,
    ModelSection,
    Objective,
    RewardSection,
    SweepSection,
    TrainingSection,
)
from modpo.inspection import facts as inspection
from modpo.inspection import tables as inspection_tables
from modpo.inspection.estimate import packed_work
from modpo.inspection.facts import inspect_experiment, look, sample_indices
from modpo.inspection.reward_statistics import correlations, reward_statistics, reward_warnings
from modpo.inspection.token_statistics import forward_passes, parts_of, reading
from tests.kit import write_rows

LENGTH = RewardSection(function="modpo.rewards.text:character_count")
ROWS = [
    {"prompt": "aaaa\n", "chosen": "xx", "rejected": "yyyy", "score_chosen": 1.0, "score_rejected": 0.0},
    {"prompt": "aaaa\n", "chosen": "xx", "rejected": "zzz", "score_chosen": 1.0, "score_rejected": 2.0},
    {"prompt": "bb\n", "chosen": "xxxxxx", "rejected": "y", "score_chosen": 5.0, "score_rejected": 5.0},
    {"prompt": "bb\n", "chosen": "xxxxxx", "rejected": "y", "score_chosen": 5.0, "score_rejected": 5.0},
    {"prompt": "cc\n", "chosen": "same", "rejected": "same"},
]
TWO = {
    "better": Objective("better", pairs="data"),
    "brief": Objective("brief", reward=LENGTH, maximize=False, scale=0.5, unit="characters"),
}


@pytest.fixture(autouse=True)
def no_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr("modpo.inspection.cost.MEASURED_SECONDS", 0.01)


def _weights(objectives: dict[str, Objective], first: float) -> dict[str, float]:
    """`first` for the first objective, the rest shared by the others."""
    head, *others = objectives
    return {head: first, **{name: (1 - first) / len(others) for name in others}}


@pytest.fixture
def experiment(tmp_path: Path, tiny_model: Path):
    """Builds an experiment on `rows`; further arguments are those of its sections."""

    def build(
        rows: list[dict[str, Any]] = ROWS, objectives: dict[str, Objective] = TWO, *, batch: int = 2, **data: Any
    ) -> Experiment:
        path = write_rows(tmp_path / "rows.jsonl", rows)
        return Experiment(
            model=ModelSection(str(tiny_model), dtype="float32"),
            data=DataSection(str(path), **{"eval_prompts": 0, "max_length": 64, **data}),
            objectives=objectives,
            training=TrainingSection(per_device_train_batch_size=batch),
            sweep=SweepSection([_weights(objectives, first) for first in (0.8, 0.5)]),
            evaluation=EvaluationSection(),
            output_dir=tmp_path / "runs",
            cache_dir=tmp_path / "cache",
            lora=LoraSection(r=2),
        )

    return build


# --- data and tokens ----------------------------------------------------------------------------------------


def test_data_is_counted(experiment):
    """Five rows, three prompts; in `cc` both are the same, and `bb` stands there twice, and counts so."""
    found = look(experiment())
    assert found.train.counts == {
        "groups": 3,
        "rows": 5,
        "responses": 3 + 2 + 1,
        "pairs": 2 + 2,
        "identical_pairs": 1,
        "duplicate_rows": 1,
    }
    assert found.sampled == 3
    assert any("chosen equals rejected" in warning for warning in found.warnings)


def test_held_out_prompts_are_not_trained_on(experiment, tmp_path, capsys):
    rows = [{"prompt": prompt, "chosen": "x", "rejected": "y"} for prompt in ("bb\n", "new\n", "cc\n")]
    held_out = write_rows(tmp_path / "held_out.jsonl", rows)
    found = look(experiment(eval_path=str(held_out), eval_prompts=64))
    assert (len(found.train), len(found.held_out)) == (1, 3)
    assert "2 prompts are held out as well: they are not trained on" in capsys.readouterr().err


def test_lengths_by_hand(experiment):
    """Prompts of 5, 3 and 3 bytes. Responses with their end: 3, 5, 4; 7, 2; 5."""
    tokens = look(experiment()).tokens
    assert (tokens.prompts.minimum, tokens.prompts.median, tokens.prompts.maximum) == (3, 3, 5)
    assert (tokens.responses.minimum, tokens.responses.median, tokens.responses.maximum) == (2, 4.5, 7)
    assert (tokens.together.minimum, tokens.together.maximum) == (3 + 2, 3 + 7)
    assert tokens.prompts.percentile_95 == pytest.approx(4.8)  # 95 % of the way from the first to the third of 3, 3, 5
    cut = (tokens.prompts_truncated, tokens.responses_truncated, tokens.merged_boundary, tokens.special_in_text)
    assert cut == (0, 0, 0, 0)


def test_what_is_cut_is_counted_and_what_would_cut_nothing_is_said(experiment):
    """max_length 8, max_prompt_length 4: `aaaa\\n` loses a token and leaves 4, so yyyy<eos> loses its end;
    `bb\\n` leaves 5, so xxxxxx<eos> loses two tokens."""
    found = look(experiment(max_length=8, max_prompt_length=4))
    assert found.tokens.prompts_truncated == 1
    assert found.tokens.responses_truncated == 2
    assert found.tokens.together.maximum == 8
    assert found.uncut_length == max(5 + 5, 3 + 7)


def test_special_tokens_in_text_are_counted(experiment):
    rows = [{"prompt": "aaaa\n", "chosen": "x<turn>y", "rejected": "z"}]
    assert look(experiment(rows)).tokens.special_in_text == 1


def test_tokens_read_by_hand(experiment):
    """Packed: 5 + (3-1) + (5-1) + (4-1) = 14 and 3 + 6 + 1 = 10. `cc` has no pair and is not read.

    Pair by pair: (5+3) + (5+5), (5+3) + (5+4), twice (3+7) + (3+2) = 65. As one batch of TRL's: 8 sequences of 10.
    """
    found = look(experiment(batch=4)).reading
    assert (found.packed, found.separate, found.padded) == (24, 65, 80)
    assert found.ratio == 80 / 24


def test_the_padded_reading_is_that_of_trl():
    """The oracle is TRL's own collator, pair by pair in batches of one and all in one batch."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    lengths, pairs = [(5, [3, 9, 4]), (2, [1, 6])], [[(0, 1), (2, 1)], [(1, 0)]]
    rows = [
        {"prompt_ids": [1] * prompt, "chosen_ids": [2] * responses[c], "rejected_ids": [3] * responses[r]}
        for (prompt, responses), paired in zip(lengths, pairs, strict=True)
        for c, r in paired
    ]
    collator = DataCollatorForPreference(pad_token_id=0)
    one_by_one = sum(collator([row])["input_ids"].numel() for row in rows)
    assert reading(lengths, pairs, batch_size=1, seed=0).padded == one_by_one
    assert reading(lengths, pairs, batch_size=8, seed=0).padded == collator(rows)["input_ids"].numel()


def test_forward_passes_are_those_of_the_trainer():
    from modpo.training.collator import GroupCollator

    lengths = [(5, [3, 4]), (9, [2]), (30, [9, 9]), (3, [2, 2]), (4, [1])]
    rows = [
        {
            "prompt_ids": [1] * p,
            "responses_ids": [[2] * n for n in ns],
            "pairs/a": [[i, 0] for i in range(len(ns))],
            "ref_logps": [0.0] * len(ns),
        }
        for p, ns in lengths
    ]
    batch = GroupCollator({"a": 1.0}, max_packed_tokens=20)(rows)
    expected = [part["packed_row"].layout.length for part in batch["parts"]]
    assert [sum(packed_work(*group).read for group in part) for part in parts_of(lengths, 20)] == expected
    passes = forward_passes(lengths, batch_size=5, most_tokens=1000, packing=True, seed=0)
    assert [work.read for work in passes] == [sum(expected)]


def test_a_large_file_is_sampled(experiment, monkeypatch, capsys):
    rows = [{"prompt": f"prompt {i}\n", "chosen": "x" * (1 + i % 7), "rejected": "yyyyyyyyy"} for i in range(60)]
    monkeypatch.setattr(inspection, "MOST_GROUPS", 20)
    asked = experiment(rows)
    found = look(asked)
    assert found.sampled == found.tokens.groups == 20
    assert len(found.train) == 60
    # Costs speak of the whole file: 60 prompts, 2 points.
    assert found.cost.training.read == pytest.approx(2 * 3 * found.reading.packed)
    inspect_experiment(asked)
    assert "a sample of 20 of 60 prompts" in capsys.readouterr().out


def test_the_sample_is_drawn_once_and_in_order():
    assert sample_indices(2000, 0).tolist() == list(range(2000))
    drawn = sample_indices(50_000, 3)
    assert len(drawn) == len(set(drawn.tolist())) == 2000
    assert drawn.tolist() == sorted(drawn.tolist()) == sample_indices(50_000, 3).tolist()
    assert 20_000 < drawn.mean() < 30_000


# --- the example --------------------------------------------------------------------------------------------


def test_the_example_lies_as_it_is_packed(experiment):
    """5 tokens of the prompt, then the read ones of xx<eos>, yyyy<eos>, zzz<eos>: 2, 4 and 3."""
    example = look(experiment()).example
    assert example.where.endswith("rows.jsonl:1")
    assert (example.prompt, example.before) == ("aaaa\n", ["a", "a", "\n"])
    assert example.responses == ["xx<eos>", "yyyy<eos>", "zzz<eos>"]
    assert example.after == ["x", "x", "<eos>"]
    assert example.ends == ["<eos>"] * 3
    assert (example.span.start, example.span.prompt_end) == (0, 5)
    assert example.span.responses == ((5, 7), (7, 11), (11, 14))
    assert list(example.pairs) == [(0, 1), (0, 2)]


def test_a_cut_response_has_no_end(experiment):
    example = look(experiment(max_length=8, max_prompt_length=4)).example
    assert example.ends == ["<eos>", "", "<eos>"]
    assert example.responses[1] == "yyyy"


# --- rewards ------------------------------------------------------------------------------------------------


def test_raw_rewards_by_hand(experiment):
    """Characters: 2, 4, 3; 6, 1; 4. Less is better: xx beats yyyy and zzz, xxxxxx does not beat y, in two rows."""
    found = look(experiment()).rewards["brief"]
    assert (found.mean, found.minimum, found.maximum) == (pytest.approx(20 / 6), 1, 6)
    assert found.sd == pytest.approx((sum((n - 20 / 6) ** 2 for n in (2, 4, 3, 6, 1, 4)) / 6) ** 0.5)
    assert (found.agreement, found.ties) == (pytest.approx(2 / 4), 0)


def test_a_column_is_read_and_ties_are_no_agreement(experiment):
    """Margins of the column: 1 - 0, 1 - 2, and 5 - 5 twice."""
    column = Objective("scored", reward=RewardSection(column="score"))
    rows = ROWS[:4]
    found = look(experiment(rows, {"better": TWO["better"], "scored": column})).rewards["scored"]
    assert (found.agreement, found.ties) == (pytest.approx(1 / 4), pytest.approx(2 / 4))


def test_correlation_counts_in_the_better_direction():
    scores = {"a": [[1.0, 2.0], [4.0]], "b": [[2.0, 4.0], [8.0]], "c": [[3.0, 3.0], [3.0]]}
    found = correlations(scores, {"a": 1.0, "b": -0.1, "c": 1.0})
    assert found["a", "b"] == pytest.approx(-1)
    assert found["a", "c"] != found["a", "c"]  # NaN: c is constant


def test_pairs_are_those_that_scoring_draws(experiment):
    drawn = Objective("better", pairs="bradley_terry", reward=LENGTH)
    asked = experiment(objectives={"better": drawn, "brief": TWO["brief"]})
    found = look(asked)
    from modpo.scored.labels import draw_bradley_terry

    assert [list(pair) for pair in found.example.pairs] == draw_bradley_terry([2.0, 4.0, 3.0], seed=0)
    assert found.rewards["better"].agreement == pytest.approx(1 - found.rewards["brief"].agreement)
    assert found.correlations["better", "brief"] == pytest.approx(-1)


def test_pairs_of_a_sample_are_those_of_its_places_in_the_data(experiment, monkeypatch):
    """Each prompt's draw is seeded by its number among all prompts, also when only some are looked at."""
    monkeypatch.setattr(inspection, "MOST_GROUPS", 25)
    drawn = Objective("better", pairs="bradley_terry", reward=LENGTH)
    rows = [{"prompt": f"prompt {i}\n", "responses": ["x", "yy"]} for i in range(60)]
    found = look(experiment(rows, {"better": drawn, "brief": TWO["brief"]}))
    from modpo.scored.labels import draw_bradley_terry

    longer = [draw_bradley_terry([1.0, 2.0], seed=i) == [[1, 0]] for i in sample_indices(60, seed=0).tolist()]
    assert found.rewards["better"].agreement == pytest.approx(sum(longer) / 25)


def warned(scores: dict[str, list[list[float]]], scales: dict[str, float] | None = None) -> list[str]:
    objectives = {name: Objective(name, scale=(scales or {}).get(name, 1.0)) for name in scores}
    found = {name: reward_statistics(values, [[(0, 1)]] * len(values), 1.0) for name, values in scores.items()}
    return reward_warnings(objectives, found, list(scores))


def test_a_constant_reward_is_warned_of():
    assert warned({"a": [[0.1, 0.1], [0.1, 0.1]]}) == [
        "a: every response has the reward 0.1: a constant reward moves nothing"
    ]


def test_a_constant_margin_is_warned_of():
    assert warned({"a": [[1.0, 1.0], [2.0, 2.0]]}) == [
        "a: both responses of every pair have the same reward: this margin moves nothing"
    ]


@pytest.mark.parametrize(("ratio", "scale", "drowns"), [(19, 1, False), (21, 1, True), (21, 0.5, False), (1, 21, True)])
def test_a_reward_that_drowns_another_is_warned_of(ratio, scale, drowns):
    found = warned({"small": [[0.0, 1.0]], "large": [[0.0, float(ratio)]]}, {"large": scale})
    assert found == [text for text in found if text.startswith("large drowns small")]
    assert bool(found) == drowns


def test_a_reward_that_only_measures_does_not_drown_a_margin(experiment):
    """The pairs' objective has a reward of its own, whose scale enters no loss."""
    measured = Objective("better", pairs="data", reward=LENGTH, scale=1000)
    found = look(experiment(objectives={"better": measured, "brief": TWO["brief"]}))
    assert not any("drowns" in warning for warning in found.warnings)
    margin = Objective("also", reward=LENGTH, scale=1000)
    found = look(experiment(objectives={**TWO, "also": margin}))
    assert any(warning.startswith("also drowns brief") for warning in found.warnings)


# --- cost ---------------------------------------------------------------------------------------------------


def test_cost_counts_every_point_epoch_and_step(experiment):
    """Two prompts with pairs in one batch: 1 step an epoch; 24 tokens for each of 2 points and 3 epochs."""
    asked = experiment()
    training = dataclasses.replace(asked.training, num_train_epochs=3.0)
    found = look(dataclasses.replace(asked, training=training)).cost
    assert (found.trainings, found.steps, found.training.read) == (2, 3, 2 * 3 * 24)
    assert found.largest.read == 24
    training = dataclasses.replace(asked.training, max_steps=5)
    found = look(dataclasses.replace(asked, training=training)).cost
    assert (found.steps, found.training.read) == (5, 2 * 5 * 24)
    assert found.training_seconds > 0
    assert found.memory.total > found.memory.process > 0


def test_a_continuous_policy_is_one_training_with_an_adapter_per_objective(experiment):
    asked = dataclasses.replace(experiment(), lora=LoraSection(r=4))
    continuous = dataclasses.replace(asked, sweep=dataclasses.replace(asked.sweep, mode="continuous"))
    one, all_vectors = look(asked).cost, look(continuous).cost
    assert (one.trainings, all_vectors.trainings) == (2, 1)
    assert all_vectors.training.read == one.training.read / 2
    assert all_vectors.shape.trainable == 2 * one.shape.trainable


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "of a sweep by MODPO"),
        ({"sweep": {"mode": "continuous"}}, "of the continuous policy of all vectors"),
        ({"sweep": {"method": "soups"}}, "of a sweep by MODPO; soups takes another time and memory"),
        (
            {"comparison": ["modpo", "soups"]},
            "of one sweep by MODPO; the comparison has sweeps by 2 methods with 3 seeds",
        ),
    ],
)
def test_what_the_estimate_is_of(experiment, capsys, asked, said):
    given = dataclasses.replace(experiment(), lora=LoraSection())
    if "comparison" in asked:
        given = dataclasses.replace(given, comparison=ComparisonSection(asked["comparison"]))
    given = dataclasses.replace(given, sweep=dataclasses.replace(given.sweep, **asked.get("sweep", {})))
    inspect_experiment(given)
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_sample_without_pairs_has_no_cost(experiment, monkeypatch):
    """The one prompt that is looked at has none, another that is not looked at has."""
    monkeypatch.setattr(inspection, "sample_indices", lambda groups, seed: np.array([0]))
    found = look(experiment([{"prompt": "aaaa\n", "responses": ["x", "yy"]}, *ROWS[2:3]]))
    assert found.cost is None
    assert found.rewards["brief"].agreement is None
    assert any(warning.startswith("no pair to train on in the prompts") for warning in found.warnings)


def test_fewer_prompts_than_a_batch_are_warned_of(experiment):
    assert any("fewer than one batch of 8" in warning for warning in look(experiment(batch=8)).warnings)
    assert not any("fewer than one batch" in warning for warning in look(experiment(batch=2)).warnings)


# --- refusals -----------------------------------------------------------------------------------------------


def test_all_rows_that_cannot_be_tokenized_are_named_at_once(experiment):
    rows = [
        {"prompt": "aaaa\n", "chosen": "<eos>", "rejected": "y"},
        {"prompt": "b\n", "chosen": "x", "rejected": "<eos>"},
    ]
    with pytest.raises(InputError) as caught:
        look(experiment(rows))
    assert [problem.where.rpartition(":")[2] for problem in caught.value.problems] == ["1", "2"]


def test_a_prompt_without_responses_is_named(experiment):
    with pytest.raises(InputError, match=r"rows.jsonl:2:responses: there is none"):
        look(experiment([*ROWS[:1], {"prompt": "bb\n", "responses": []}]))


def test_adapters_that_fit_nowhere_are_named(experiment):
    import dataclasses

    asked = dataclasses.replace(experiment(), lora=LoraSection(target_modules=["no_such_module"]))
    with pytest.raises(InputError, match=r"lora: do not fit the model: .*no_such_module"):
        look(asked)


def test_a_reward_that_is_not_finite_is_refused(experiment, tmp_path, monkeypatch):
    (tmp_path / "endless.py").write_text("def score(completions):\n    return [float('inf')] * len(completions)\n")
    monkeypatch.syspath_prepend(tmp_path)
    endless = Objective("brief", reward=RewardSection(function="endless:score"))
    with pytest.raises(NumericError, match="not finite"):
        look(experiment(objectives={**TWO, "brief": endless}))


# --- on standard output -------------------------------------------------------------------------------------


def test_the_page_is_readable_at_100_columns_and_safe(experiment, capsys):
    """Brackets are no markup, control characters are spelled out, the end is seen; nothing is written."""
    long = "word " * 400
    rows = [{"prompt": "[red]stop\x1b[31m\u202e\n", "chosen": f"[/] {long}", "rejected": "no"}]
    asked = experiment(rows, max_length=4096)
    before = sorted(Path(asked.data.path).parent.rglob("*"))
    inspect_experiment(asked)
    page = capsys.readouterr().out
    assert "[red]stop\\x1b[31m\\u202e\\n" in page
    assert "[/] word" in page
    assert "no<eos>" in page
    assert "0 over 1" in page
    assert "\x1b" not in page
    assert max(map(len, page.splitlines())) <= inspection_tables.WIDTH
    assert len(page.splitlines()) < 60
    assert sorted(Path(asked.data.path).parent.rglob("*")) == before


def test_no_character_is_invisible_wherever_it_stands(experiment, capsys):
    """Unicode's control and format characters, separators and some lone surrogates, in a text and as tokens."""
    characters = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 < i < 0xDFFF]
    hidden = [c for c in characters if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    hidden = sorted(set(hidden) - {"\u200c", "\u200d"})  # they shape letters and emoji
    found = look(experiment())
    for few in (hidden[i : i + 4] for i in range(0, len(hidden), 4)):
        text = "".join(f"<{c}>" for c in few)
        example = dataclasses.replace(found.example, where=text, prompt=text, before=list(few), after=list(few))
        inspection_tables.show(dataclasses.replace(found, example=example, warnings=[text]))
        page = capsys.readouterr().out.replace("\n", "")
        assert not set(few) & set(page)
        for c in few:
            assert page.count(f"<{repr(c)[1:-1]}>") == 3
            assert page.count(f"[{repr(c)[1:-1]}]") == 2


@pytest.mark.parametrize("side", ["prompt", "response"])
def test_no_secret_is_shown_in_a_row_or_piece_by_piece(experiment, capsys, side):
    secret = "hf_" + "aB3" * 8
    prompt, response = (f"key {secret}", "x") if side == "prompt" else ("aaaa\n", f"{secret} is it")
    inspect_experiment(experiment([{"prompt": prompt, "chosen": response, "rejected": "y"}], max_length=256))
    page = capsys.readouterr().out
    assert "***" in page
    assert "aB3" not in page
    assert "[***]" in page
    pieces = "[a] [B] [3]" if side == "prompt" else "[h] [f] [_]"
    assert pieces not in page


def test_from_the_command_line(experiment, tmp_path, capsys):
    from modpo.experiment.file import to_yaml

    file = tmp_path / "experiment.yaml"
    file.write_text(to_yaml(experiment()))
    assert main(["inspect", str(file)]) == 0
    page = capsys.readouterr().out
    assert "modpo.rewards.text:character_count" in page
    assert "beta 0.1" in page
