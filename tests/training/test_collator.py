"""Which rows hold something to train on: of all rows at once, against the choices of each row."""

from __future__ import annotations

import random
from typing import Any

import pytest
from datasets import Dataset

from modpo.scored.calibration import Calibration
from modpo.scored.equal_tokens import first_equal
from modpo.training.collator import GroupCollator
from modpo.training.loss_weighting import OwnPairs
from modpo.training.scored_rows import trainable_rows


def made(seed: int, count: int = 60, *, first: bool = True) -> list[dict[str, Any]]:
    """Rows of which much is missing: pairs, scores, responses that differ."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        size = rng.randint(1, 4)
        equal = first_equal([[rng.randrange(3)] for _ in range(size)])
        possible = [[a, b] for a in range(size) for b in range(size) if equal[a] != equal[b]]
        rows.append(
            {
                "ref_logps": [-1.0] * size,
                **({"first_equal": equal} if first else {}),
                "pairs/a": rng.sample(possible, min(len(possible), rng.randrange(3))),
                "pairs/b": rng.sample(possible, min(len(possible), rng.randrange(2))),
                **({"reward/a": [rng.choice([1.0, None]) for _ in range(size)]} if seed == 1 else {}),
                "reward/b": [rng.choice([0.0, 1.0, None]) for _ in range(size)],
                "reward/c": [rng.choice([0.5, None]) for _ in range(size)],
            }
        )
    return rows


VECTORS = [{"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}, {"b": 0.5, "c": 0.5}, {"a": 0.4, "b": 0.3, "c": 0.3}]
OPTIONS = [{}, {"objective": "b"}, {"regression_below": 0.6}, {"calibrations": {"c": Calibration(fill=0.0)}}]


@pytest.mark.parametrize("collate", [GroupCollator, OwnPairs])
@pytest.mark.parametrize("weights", VECTORS, ids=str)
def test_rows_that_are_trained_on_are_those_with_a_choice(
    collate: type[GroupCollator], weights: dict[str, float]
) -> None:
    for seed, options in enumerate(OPTIONS):
        rows = made(seed, first=seed != 1)
        collator = collate(weights, **options)
        expected = [any(choice.pairs for choice in collator.choices(row)) for row in rows]
        assert 0 < sum(expected) < len(rows)
        table = Dataset.from_list(rows).with_format("arrow")
        assert collator.trained(table[:]).tolist() == expected


def test_a_selection_is_looked_at_in_its_own_order() -> None:
    rows = Dataset.from_list(made(0)).select([*range(30, 0, -3), 5, 5])
    collator = GroupCollator({"a": 0.5, "b": 0.5})
    expected = [row for row in rows if any(choice.pairs for choice in collator.choices(row))]
    assert trainable_rows(rows, collator, "rows").to_list() == expected
