"""Pairs that differ as text and not as tokens: dropped and counted, whoever labels them; refused if nothing is left."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from modpo.base.errors import InputError
from modpo.cli import main
from modpo.experiment.sections import DRAWN, Objective, RewardSection
from modpo.scored.equal_tokens import differing, first_equal
from modpo.scored.of_rows import score_dataset
from modpo.training.collator import GroupCollator
from modpo.training.scored_rows import trainable_rows
from tests.kit import write_experiment, write_rows

LENGTH = RewardSection(function="modpo.rewards.text:character_count")
DRAWN_LONG = Objective("long", reward=LENGTH, pairs=DRAWN)

# One token a byte and 13 tokens in all: the prompt's 6, then the first 7 of a response with its end.
ROWS = [
    {"prompt": "aaaaa\n", "responses": ["1234567x", "1234567yy", "zz"], "pairs": [[0, 1], [0, 2], [2, 1]]},
    {"prompt": "bbbbb\n", "responses": ["one", "two"], "pairs": [[1, 0]]},
    {"prompt": "ccccc\n", "responses": ["end", "end<eos>", "xy"], "pairs": [[0, 1], [1, 0], [1, 2]]},
]
KEPT = [[[0, 2], [2, 1]], [[1, 0]], [[1, 2]]]


@pytest.fixture(scope="module")
def score(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """Scores rows whose texts are cut to 13 tokens."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def run(rows: list[dict[str, Any]], *objectives: Objective, label_sets: dict[str, str] | None = None) -> Dataset:
        return score_dataset(
            Dataset.from_list(rows),
            model=model,
            tokenizer=tokenizer,
            objectives={objective.name: objective for objective in objectives},
            label_sets=label_sets or {},
            max_length=13,
            cache_dir=tmp_path_factory.mktemp("cache"),
        )

    return run


def without(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def test_first_equal() -> None:
    assert first_equal([[1], [2, 3], [1], [2], [2, 3]]) == [0, 1, 0, 3, 1]
    assert differing([(0, 2), (2, 0), (0, 1), (4, 3), (1, 4)], [0, 1, 0, 3, 1]) == [(0, 1), (4, 3)]


def test_pairs_of_the_data(score, capsys) -> None:
    scored = score(ROWS, Objective("kind"), label_sets={"kind": "data"})
    assert scored["pairs/kind"][:] == KEPT
    for ids, first in zip(scored["responses_ids"], scored["first_equal"], strict=True):
        assert first == [ids.index(own) for own in ids]
    said = [line for line in capsys.readouterr().err.splitlines() if "same tokens" in line]
    assert said == [
        "warning: 2 responses have the same tokens as another to their prompt, so pairs of the two are dropped "
        "(3 of kind); data set:row 0, for example: they differ behind `max_length` 13 only; fix: raise `max_length`"
    ]


def test_drawn_pairs_and_those_of_regression(score, capsys) -> None:
    """Of every two responses that differ as tokens: two of three in the first and the last prompt."""
    drawn = score(without(ROWS, "pairs"), DRAWN_LONG, label_sets={"long": DRAWN})
    every = [[{a, b} for a, b in combinations(range(n), 2) if {a, b} != {0, 1} or n == 2] for n in (3, 2, 3)]
    assert [[set(pair) for pair in pairs] for pairs in drawn["pairs/long"]] == every
    assert "(2 of long)" in capsys.readouterr().err
    unlabelled = score(without(ROWS, "pairs"), Objective("long", reward=LENGTH))
    collator = GroupCollator({"long": 1.0})
    assert [[set(pair) for choice in collator.choices(row) for pair in choice.pairs] for row in unlabelled] == every
    assert "so the two make no pair" in capsys.readouterr().err


EQUAL = [
    {"prompt": "aaaaa\n", "chosen": "1234567x", "rejected": "1234567y"},
    {"prompt": "bbbbb\n", "chosen": "yes", "rejected": "yes<eos>"},
]


@pytest.mark.parametrize(
    ("rows", "objective", "expected"),
    [
        (EQUAL, Objective("kind"), "all 2 pairs of kind have the same tokens: they differ behind `max_length` 13"),
        (EQUAL[1:], Objective("kind"), "all 1 pairs of kind have the same tokens: the tokenizer and its chat template"),
        (EQUAL, DRAWN_LONG, "all responses of each of 2 prompts have the same tokens"),
        (EQUAL, Objective("long", reward=LENGTH), "all responses of each of 2 prompts have the same tokens"),
    ],
)
def test_nothing_but_equal_pairs_is_refused(score, rows, objective, expected) -> None:
    if objective.reward:
        rows = [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]} for row in rows]
    label_sets = {} if objective.reward and not objective.pairs else {objective.name: objective.pairs or "data"}
    with pytest.raises(InputError) as error:
        score(rows, objective, label_sets=label_sets)
    assert f"data set:row 0:pairs: {expected}" in str(error.value)
    assert "fix: " in str(error.value)


def test_a_prompt_with_nothing_else_is_not_trained_on(score) -> None:
    scored = score(
        [{**ROWS[1], "pairs": [[0, 1]]}, {**ROWS[2], "pairs": [[0, 1]]}], Objective("kind"), label_sets={"kind": "data"}
    )
    kept = trainable_rows(scored, GroupCollator({"kind": 1.0}), "rows")
    assert kept["pairs/kind"][:] == [[[0, 1]]]


def test_repeated_rows_are_trained_on_as_often(score) -> None:
    row = {"prompt": "aaaaa\n", "chosen": "one", "rejected": "two"}
    scored = score(
        [row, row, {**row, "chosen": "two", "rejected": "one"}, row], Objective("kind"), label_sets={"kind": "data"}
    )
    assert scored["pairs/kind"][:] == [[[0, 1], [0, 1], [1, 0], [0, 1]]]
    (part,) = GroupCollator({"kind": 1.0})(scored)["parts"]
    assert part["pairs"].tolist() == [[0, 1], [0, 1], [1, 0], [0, 1]]


def test_the_command_line_refuses_before_a_weight_is_read(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    rows = [{"prompt": f"p{i}\n", "chosen": f"{'x' * 90}a", "rejected": f"{'x' * 90}b"} for i in range(8)]
    write_rows(tmp_path / "rows.jsonl", rows)
    file = write_experiment(tmp_path, tiny_model)
    assert main(["sweep", str(file)]) == 2
    assert "all 5 pairs of kind have the same tokens: they differ behind `max_length` 64" in capsys.readouterr().err
    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr()
    assert "5 responses have the same tokens" in " ".join((shown.out + shown.err).split())
