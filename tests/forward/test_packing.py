"""Packed rows: the layout by hand, and what must hold of every row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modpo.forward.packing import GroupSpan, PackedLayout, PackedRow, pack, packed_tokens, runs, unpack

relaxed = settings(deadline=None, max_examples=80)

tokens = st.integers(0, 99)
groups = st.lists(
    st.tuples(
        st.lists(tokens, min_size=1, max_size=5),
        st.lists(st.lists(tokens, min_size=1, max_size=4), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def packed(rows: list[tuple[list[int], list[list[int]]]]) -> PackedRow:
    return pack([prompt for prompt, _ in rows], [responses for _, responses in rows])


def test_layout_by_hand():
    """Two groups. The last token of each response is predicted only, so it is not in the row.

    position in row   0  1 | 2  3 |   | 4 | 5 | 6
    token            10 11 |20 21 |   |30 |40 |50
                     prompt| (20 21 22) (23) (30 31) | prompt 40 | (50 51)
    """
    row = pack([[10, 11], [40]], [[[20, 21, 22], [23], [30, 31]], [[50, 51]]])
    assert row.input_ids.tolist() == [[10, 11, 20, 21, 30, 40, 50]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert row.labels.tolist() == [20, 21, 22, 23, 30, 31, 50, 51]
    assert row.predictors.tolist() == [1, 2, 3, 1, 1, 4, 5, 6]
    assert row.response_index.tolist() == [0, 0, 0, 1, 2, 2, 3, 3]
    assert row.responses == 4
    assert row.layout == PackedLayout(
        (GroupSpan(0, 2, ((2, 4), (4, 4), (4, 5))), GroupSpan(5, 6, ((6, 7),))),
        length=7,
    )
    assert [group.end for group in row.layout.groups] == [5, 7]


@relaxed
@given(rows=groups)
def test_unpack_gives_back_what_was_packed(rows: list[tuple[list[int], list[list[int]]]]):
    assert unpack(packed(rows)) == ([prompt for prompt, _ in rows], [responses for _, responses in rows])


def test_dense_mask_by_hand():
    """Prompt p p, responses a a and b, then another group q c: who sees whom (rows see columns)."""
    row = pack([[1, 2], [3]], [[[4, 5, 6], [7, 8]], [[9, 9]]])
    expected = """
        p 1 0 0 0 0 0 0
        p 1 1 0 0 0 0 0
        a 1 1 1 0 0 0 0
        a 1 1 1 1 0 0 0
        b 1 1 0 0 1 0 0
        q 0 0 0 0 0 1 0
        c 0 0 0 0 0 1 1
    """
    wanted = [[int(cell) for cell in line.split()[1:]] for line in expected.strip().splitlines()]
    assert row.layout.dense_mask.int().tolist() == wanted


def test_sums_by_response():
    """Labels 20 21 22 | 23 | 30 31 with log-probs -1 -2 -3 | -4 | -5 -6: sums -6, -4, -11."""
    row = pack([[10, 11]], [[[20, 21, 22], [23], [30, 31]]])
    assert row.sum_by_response(-torch.arange(1.0, 7.0)).tolist() == [-6, -4, -11]


@pytest.mark.parametrize(
    ("given_dtype", "summed_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_sums_are_float32_at_least(given_dtype: torch.dtype, summed_dtype: torch.dtype):
    """600 times -1/256 in bfloat16 stops at about -1 when summed in bfloat16; the sum is -2.34375."""
    row = pack([[1]], [[[2] * 600]])
    total = row.sum_by_response(torch.full((600,), -1 / 256, dtype=given_dtype))
    assert total.dtype == summed_dtype
    assert total.item() == pytest.approx(-600 / 256, rel=1e-6)


def test_sums_carry_gradients():
    row = pack([[1]], [[[2, 3], [4]]])
    logps = torch.zeros(3, requires_grad=True)
    (row.sum_by_response(logps) * torch.tensor([2.0, 5.0])).sum().backward()
    assert logps.grad.tolist() == [2, 2, 5]


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ([[]], [[[1]]], "a prompt has no token"),
        ([[1]], [[[1], []]], "a response has no token"),
        ([[1], [2]], [[[1]]], "shorter"),
    ],
)
def test_refuses(prompts: list, responses: list, message: str):
    with pytest.raises(ValueError, match=message):
        pack(prompts, responses)


def test_a_prompt_without_responses_takes_its_own_tokens_only():
    row = pack([[1, 2, 3]], [[]])
    assert row.layout.groups[0].end == row.layout.length == 3
    assert row.responses == 0


def test_moves_to_a_device():
    row = pack([[1, 2]], [[[3, 4]]]).to("meta")
    moved = [v for v in vars(row).values() if isinstance(v, torch.Tensor)]
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert len(moved) == 5
    assert (row.responses, row.layout.length) == (1, 3)


@relaxed
@given(rows=groups)
def test_every_response_token_is_predicted_once_by_the_token_before_it(rows):
    """Walking each sequence (prompt, response) alone: its labels, and the token and position that predict each."""
    row = packed(rows)
    wanted = [
        (number, label, (prompt + response)[len(prompt) + i - 1], len(prompt) + i - 1)
        for number, (prompt, response) in enumerate((p, r) for p, responses in rows for r in responses)
        for i, label in enumerate(response)
    ]
    found = zip(
        row.response_index.tolist(),
        row.labels.tolist(),
        row.input_ids[0, row.predictors].tolist(),
        row.position_ids[0, row.predictors].tolist(),
        strict=True,
    )
    assert list(found) == wanted


@relaxed
@given(rows=groups)
def test_each_position_sees_exactly_the_tokens_before_it_in_its_own_sequence(rows):
    """The visible tokens, in order, are the sequence (prompt, response) up to the predictor: as if it stood alone."""
    row = packed(rows)
    sequences = [(prompt, response) for prompt, responses in rows for response in responses]
    seen_before: dict[int, int] = {}
    for number, predictor in zip(row.response_index.tolist(), row.predictors.tolist(), strict=True):
        at = seen_before[number] = seen_before.get(number, -1) + 1
        prompt, response = sequences[number]
        visible = row.layout.dense_mask[predictor]
        assert row.input_ids[0, visible].tolist() == prompt + response[:at]
        assert row.position_ids[0, visible].tolist() == list(range(len(prompt) + at))


@relaxed
@given(rows=groups)
def test_length_is_the_sum_of_its_groups(rows):
    row = packed(rows)
    assert row.layout.length == row.input_ids.numel() == row.position_ids.numel()
    assert row.layout.length == sum(packed_tokens(prompt, responses) for prompt, responses in rows)
    assert row.responses == sum(len(responses) for _, responses in rows)
    starts = [0, *(group.end for group in row.layout.groups)]
    assert [group.start for group in row.layout.groups] == starts[:-1]
    assert starts[-1] == row.layout.length


def test_runs_fill_up_to_the_limit_and_take_a_large_item_alone():
    """3 + 4 fit in 8, another 2 do not; 9 is too large for any run and stands alone."""
    sizes = [3, 4, 2, 9, 1, 1]
    assert [sizes[run] for run in runs(sizes, 8)] == [[3, 4], [2], [9], [1, 1]]
    assert list(runs([], 8)) == []
