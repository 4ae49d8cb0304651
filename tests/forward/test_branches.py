"""How a packed row is cut and put side by side: counted cell by cell against the dense mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modpo.forward import branches
from modpo.forward.branches import Batch, branches_of, plan
from modpo.forward.packing import PackedLayout, pack

CPU = torch.device("cpu")

relaxed = settings(deadline=None, max_examples=40)
groups = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 12), max_size=4).map(tuple)), min_size=1, max_size=4
)


def layout(lengths: list[tuple[int, tuple[int, ...]]]) -> PackedLayout:
    return pack([[0] * prompt for prompt, _ in lengths], [[[0] * n for n in rs] for _, rs in lengths]).layout


def visible(batch: Batch) -> torch.Tensor:
    """Which keys each row of a batch sees, (B, R, K) bool; padded rows see none."""
    seen = torch.ones(batch.branches, batch.R, batch.P + batch.R, dtype=torch.bool)
    C = batch.bias.shape[-1]
    seen[..., -C:] = batch.bias[:, 0, :, 0] == 0
    return seen if batch.real is None else seen & batch.real[:, 0].bool()


@relaxed
@given(lengths=groups, rows=st.integers(1, 6), scores=st.sampled_from([1, 100, 1 << 20]), kv_heads=st.integers(1, 3))
def test_batches_see_each_visible_pair_of_positions_once(lengths, rows: int, scores: int, kv_heads: int):
    """Whatever the size of branches and batches; `places` finds each position of each head where it was computed."""
    row = layout(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branches, "BRANCH_ROWS", rows)
        patch.setattr(branches, "BATCH_SCORES", scores)
        found = plan.__wrapped__(row, kv_heads, torch.float32, CPU)
    for head in range(kv_heads):
        count = torch.zeros(row.length, row.length, dtype=torch.int)
        for batch in found.batches:
            own, keys = (x.view(batch.branches, kv_heads, -1)[:, head] for x in (batch.rows, batch.keys))
            assert (own % kv_heads == head).all()
            assert (keys % kv_heads == head).all()
            b, r, k = visible(batch).nonzero(as_tuple=True)
            at = (own[b, r] // kv_heads, keys[b, k] // kv_heads)
            count.index_put_(at, torch.ones(len(b), dtype=torch.int), accumulate=True)
        assert torch.equal(count, row.dense_mask.int())
    computed = torch.cat([batch.rows for batch in found.batches])
    assert torch.equal(computed[found.places], torch.arange(row.length * kv_heads))


@relaxed
@given(lengths=groups, rows=st.integers(1, 6))
def test_branches_cover_each_position_once(lengths, rows: int):
    row = layout(lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branches, "BRANCH_ROWS", rows)
        found = list(branches_of(row))
    assert sorted(t for branch in found for t in range(branch.first, branch.last)) == list(range(row.length))


def test_many_short_groups_are_few_batches():
    """9 prompts, and their 36 responses 15 at a time: 15 x 47 x (41 + 47) is nearly 2^16 scores."""
    row = layout([(41, (46, 47, 48, 46))] * 9)
    assert [batch.branches for batch in plan(row, 3, torch.float32, CPU).batches] == [9, 15, 15, 6]
