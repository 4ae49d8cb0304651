"""What is asked of columns of lists at once, against a loop over their rows."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest

from modpo.data.groups import group_rows
from modpo.data.rows import rows_from_list
from modpo.scored.equal_tokens import EqualTokens, first_equal
from modpo.scored.lists import highest_id, lengths, longest_with_response, pairs_of_rows, sums


def chunked(rows: list[Any]) -> pa.ChunkedArray:
    """The rows in two chunks, as several shards give them."""
    kind = pa.array(rows).type
    half = len(rows) // 2
    return pa.chunked_array([pa.array(rows[:half], kind), pa.array(rows[half:], kind)], kind)


def made(seed: int, rows: int = 40) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts of ids with one to four responses, some of which are the same."""
    rng = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [rng.randrange(3) for _ in range(rng.randint(1, most))]

    return [(ids(9), [ids(2) for _ in range(rng.randint(1, 4))]) for _ in range(rows)]


@pytest.mark.parametrize("seed", range(3))
def test_extents_are_those_of_a_loop(seed: int) -> None:
    rows = made(seed)
    ids = chunked([prompt for prompt, _ in rows]), chunked([responses for _, responses in rows])
    assert longest_with_response(*ids).tolist() == [len(p) + max(map(len, r)) for p, r in rows]
    assert highest_id(*ids).tolist() == [max(map(max, [p, *r])) for p, r in rows]


def test_pairs_know_their_row() -> None:
    rows = [[[0, 1]], [], [[2, 0], [1, 2]], None, [[1, 0]]]
    pairs, row = pairs_of_rows(chunked(rows))
    assert pairs.tolist() == [[0, 1], [2, 0], [1, 2], [1, 0]]
    assert row.tolist() == [0, 2, 2, 4]
    assert lengths(chunked(rows)).tolist() == [1, 0, 2, 0, 1]
    assert sums(pairs[:, 0], lengths(chunked(rows))).tolist() == [0, 0, 3, 0, 1]


@pytest.mark.parametrize("rows", [[], [None, None], [[], []]])
def test_columns_without_a_pair(rows: list[Any]) -> None:
    pairs, row = pairs_of_rows(pa.array(rows))
    assert pairs.shape == (0, 2)
    assert row.shape == (0,)


@pytest.mark.parametrize("seed", range(3))
def test_equal_tokens_of_a_column_are_those_of_its_rows(seed: int) -> None:
    firsts = [first_equal(responses) for _, responses in made(seed)]
    groups = group_rows(rows_from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]))
    assert EqualTokens.of_column(groups, chunked(firsts)) == EqualTokens.of(groups, firsts)
    alone = [[0], [0, 1]]
    assert EqualTokens.of_column(groups, chunked(alone)) == EqualTokens.of(groups, alone)
