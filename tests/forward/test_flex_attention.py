"""What a GPU runs in place of block attention, as far as a CPU shows it: uncompiled values, and what is compiled."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from modpo.forward import attention
from modpo.forward.packing import PackedLayout, pack

D, SCALE = 16, 0.3


def layout(prompt: int, *responses: int) -> PackedLayout:
    """Two groups: of a prompt and its responses, and a small one."""
    return pack([[0] * prompt, [0] * 7], [[[0] * n for n in responses], [[0] * 5]]).layout


def inputs(row: PackedLayout) -> list[Tensor]:
    """q (1, 4, T, D), k and v (1, 2, T, D)."""
    generator = torch.Generator().manual_seed(row.length)
    return [torch.randn(1, heads, row.length, D, generator=generator) for heads in (4, 2, 2)]


def dense(q: Tensor, k: Tensor, v: Tensor, row: PackedLayout) -> Tensor:
    """softmax(SCALE q k) v over the whole row, (1, T, H, D)."""
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    scores = (SCALE * q @ k.transpose(2, 3)).masked_fill(~row.dense_mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_multiplies_in_the_dtype_of_v(monkeypatch: pytest.MonkeyPatch):
    """Under autocast q and k come in float32 beside a bfloat16 v; the kernel knows one dtype."""
    asked = []

    def seen(function):
        def call(q: Tensor, k: Tensor, v: Tensor, **settings) -> Tensor:
            asked.extend(tensor.dtype for tensor in (q, k, v))
            return function(q, k, v, **settings)

        return call

    monkeypatch.setattr(attention, "_compiled", seen)
    row = layout(130, 140, 1, 20)
    q, k, v = inputs(row)
    found = attention._flex_attention(q, k, v.bfloat16(), row, SCALE)
    assert asked == [torch.bfloat16] * 3
    torch.testing.assert_close(found.float(), dense(q, k, v, row), rtol=2e-2, atol=2e-2)


def test_is_compiled_a_few_times_for_rows_of_many_lengths(monkeypatch: pytest.MonkeyPatch):
    """Code generation is left out: what decides are the sizes and objects that the graph is bound to."""
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = functools.lru_cache(functools.partial(torch.compile, dynamic=True, backend=count))
    monkeypatch.setattr(attention, "_compiled", compiled)
    for n in range(1, 12):  # more than the 8 that torch would compile before it gives up
        row = layout(120 + 31 * n, 20 * n, 5)
        q, k, v = inputs(row)
        found = attention._flex_attention(q, k, v, row, SCALE)
        torch.testing.assert_close(found, dense(q, k, v, row), rtol=1e-4, atol=1e-5)
    assert len(graphs) <= 3


def test_more_is_compiled_than_torch_would():
    """A limit of torch's, behind which it runs the attention uncompiled, with all scores in memory."""
    attention._compiled.cache_clear()
    attention._compiled(torch.add)
    assert torch._dynamo.config.recompile_limit >= attention.FLEX_COMPILATIONS
    attention._compiled.cache_clear()
