"""Attention of a packed row, registered with transformers' `AttentionInterface` as `modpo_packed`.

The row is cut into blocks of query rows. Each block multiplies against the keys it may see and no others: a prompt
block against the prompt so far, a response block against its prompt and itself. Only the probabilities of one block
exist at a time; the backward pass computes them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from modpo.forward.packing import GroupSpan, PackedLayout

IMPLEMENTATION = "modpo_packed"
BLOCK_ROWS = 256  # query rows a block: large enough for full matmul speed, small enough to stay in cache
FLEX_COMPILATIONS = 64  # of flex attention, at most: see `_compiled`
# Arguments of models whose attention is more than softmax(q k) v: refused, since dropping them would be silent.
UNSUPPORTED_ARGUMENTS = ("sliding_window", "softcap", "position_bias", "s_aux", "cache")


@dataclass(frozen=True)
class Block:
    """R query rows and the K keys that they see; `hidden` marks, among the last C keys, those that they do not."""

    rows: slice
    keys: tuple[slice, ...]
    hidden: Tensor | None  # (R, C) bool over the last C of the keys


@contextmanager
def packed_attention(model: PreTrainedModel, implementation: str = IMPLEMENTATION) -> Iterator[None]:
    """Within it, `model` takes packed rows; before and after, it is what it was."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q k / sqrt(d)) v with each response seeing its prompt and itself.

    Args:
        query: (1, H, T, D). key: (1, H_kv, T, D), H a multiple of H_kv. value: (1, H_kv, T, D_v); in multi-head latent
            attention (DeepSeek) D_v is another size than D.
        packed: the row's layout, passed through the model's forward.

    Returns:
        (1, T, H, D_v), None.

    Raises:
        ValueError: no layout, attention dropout, a mask or another argument that block attention does not know.
    """
    if packed is None:
        raise ValueError(
            "packed attention was called without a packed row: call the model through modpo.forward.logprobs"
        )
    if dropout:
        raise ValueError("packed attention has no dropout; fix: set attention_dropout to 0, or `packing: false`")
    unsupported = [name for name in UNSUPPORTED_ARGUMENTS if kwargs.get(name) is not None]
    if attention_mask is not None:
        unsupported.append("attention_mask")
    if unsupported:
        raise ValueError(f"packed attention does not know {', '.join(unsupported)}; fix: set `packing: false`")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if query.device.type == "cuda":
        return _flex_attention(query, key, value, packed, scaling), None
    # Under autocast, rotary embeddings leave q and k in float32 beside a bfloat16 v.
    q, k = (query[0] * scaling).to(value.dtype), key[0].to(value.dtype)
    out: Tensor = BlockAttention.apply(q, k, value[0], packed)  # (T, H, D_v)
    return out[None], None


class BlockAttention(torch.autograd.Function):
    """Exact attention in blocks of rows, q already scaled; see `forward`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout) -> Tensor:
        """q (H, T, D), k (H_kv, T, D), v (H_kv, T, D_v) -> (T, H, D_v)."""
        H, T, _ = q.shape
        out = q.new_empty(T, H, v.shape[-1])
        for block in blocks(layout, q.device):
            k_b, v_b = _gather(k, block.keys), _gather(v, block.keys)
            probs = _probabilities(_by_kv_head(q, block.rows, len(k)), k_b, block)
            out[block.rows] = _by_position(probs @ v_b, H)
        ctx.save_for_backward(q, k, v)
        ctx.layout = layout
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """d_out (T, H, D_v) -> gradients of q (H, T, D), k (H_kv, T, D), v (H_kv, T, D_v)."""
        q, k, v = ctx.saved_tensors
        H, T, D = q.shape
        d_out_heads = d_out.transpose(0, 1)  # (H, T, D_v)
        dq = q.new_empty(T, H, D)
        # Many blocks add to a prompt's keys: in float32, so that their sum is rounded once.
        sum_dtype = torch.promote_types(k.dtype, torch.float32)
        dk, dv = torch.zeros_like(k, dtype=sum_dtype), torch.zeros_like(v, dtype=sum_dtype)
        for block in blocks(ctx.layout, q.device):
            q_b = _by_kv_head(q, block.rows, len(k))  # (H_kv, G R, D)
            g_b = _by_kv_head(d_out_heads, block.rows, len(k))  # (H_kv, G R, D_v)
            k_b, v_b = _gather(k, block.keys), _gather(v, block.keys)
            probs = _probabilities(q_b, k_b, block)
            d_probs = g_b @ v_b.transpose(1, 2)
            # d softmax: p * (dp - sum(p dp)); one fused pass over the block
            d_scores = torch.ops.aten._softmax_backward_data(d_probs, probs, -1, probs.dtype)
            dq[block.rows] = _by_position(d_scores @ k_b, H)
            _scatter_add(dk, block.keys, d_scores.transpose(1, 2) @ q_b)
            _scatter_add(dv, block.keys, probs.transpose(1, 2) @ g_b)
        return dq.transpose(0, 1), dk.to(k.dtype), dv.to(v.dtype), None


def _probabilities(q_b: Tensor, k_b: Tensor, block: Block) -> Tensor:
    """q_b (H_kv, G R, D), k_b (H_kv, K, D) -> (H_kv, G R, K).

    The softmax of a bfloat16 tensor is computed in float32 and rounded once.
    """
    scores = q_b @ k_b.transpose(1, 2)
    if block.hidden is not None:
        R, C = block.hidden.shape
        tail = scores.view(len(q_b), -1, R, scores.shape[-1])[..., -C:]
        tail.masked_fill_(block.hidden, float("-inf"))
    return torch.softmax(scores, dim=-1)


def _by_kv_head(q: Tensor, rows: slice, kv_heads: int) -> Tensor:
    """(H, T, D) -> (H_kv, G R, D): the G query heads of a key head stand below one another."""
    return q[:, rows].reshape(kv_heads, -1, q.shape[-1])


def _by_position(x: Tensor, heads: int) -> Tensor:
    """(H_kv, G R, D) -> (R, H, D)."""
    return x.reshape(heads, -1, x.shape[-1]).transpose(0, 1)


def _gather(x: Tensor, slices: tuple[slice, ...]) -> Tensor:
    """(H_kv, T, D) -> (H_kv, K, D): the K positions of the slices, one after the other."""
    return x[:, slices[0]] if len(slices) == 1 else torch.cat([x[:, s] for s in slices], dim=1)


def _scatter_add(total: Tensor, slices: tuple[slice, ...], part: Tensor) -> None:
    """Add a part, (H_kv, K, D), to the positions of the slices in a total, (H_kv, T, D): the reverse of `_gather`."""
    at = 0
    for s in slices:
        length = s.stop - s.start
        total[:, s] += part[:, at : at + length]
        at += length


@lru_cache(maxsize=8)  # every layer of a forward and a backward pass asks for the same layout
def blocks(layout: PackedLayout, device: torch.device) -> tuple[Block, ...]:
    """The blocks of a row. Together they cover each position once."""
    return tuple(block for group in layout.groups for block in _group_blocks(group, device))


def _group_blocks(group: GroupSpan, device: torch.device) -> Iterator[Block]:
    """Blocks of one group: of a small one a single block, `hidden` (R, R)."""
    if group.end - group.start <= BLOCK_ROWS:
        # A small group is one block: a few masked products cost less than many small ones.
        whole = slice(group.start, group.end)
        shift = group.start
        alone = GroupSpan(0, group.prompt_end - shift, tuple((a - shift, b - shift) for a, b in group.responses))
        visible = PackedLayout((alone,), alone.end).dense_mask
        yield Block(whole, (whole,), ~visible.to(device))
        return
    yield from _causal_blocks((), group.start, group.prompt_end, device)
    prompt = (slice(group.start, group.prompt_end),)
    for first, last in group.responses:
        yield from _causal_blocks(prompt, first, last, device)


def _causal_blocks(before: tuple[slice, ...], first: int, last: int, device: torch.device) -> Iterator[Block]:
    """Blocks of the rows [first, last), which see all of `before` and, causally, themselves; `hidden` is (R, R)."""
    for start in range(first, last, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, last)
        future = torch.ones(stop - start, stop - start, dtype=torch.bool, device=device).triu(1)
        yield Block(slice(start, stop), (*before, slice(first, stop)), future)


def _flex_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scaling: float) -> Tensor:
    """The same on a GPU, where flex_attention skips hidden tiles inside one kernel.

    Args:
        q: (1, H, T, D), not scaled yet. k: (1, H_kv, T, D). v: (1, H_kv, T, D_v).

    Returns:
        (1, T, H, D_v).
    """
    from torch.nn.attention.flex_attention import flex_attention

    q, k = q.to(v.dtype), k.to(v.dtype)  # as in `packed_attention_forward`: the kernel multiplies one dtype only
    out = _compiled(flex_attention)(
        q, k, v, block_mask=_flex_mask(layout, q.device), scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2)


@lru_cache(maxsize=1)
def _compiled(function: Any) -> Any:
    """Compiled a few times for rows of any length, and again for other dtypes, scales, numbers of heads, or gradients.

    Beyond a limit that torch sets (8), it would be run uncompiled, with all scores in memory: policy, reference and
    reward models in one process may need more.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, FLEX_COMPILATIONS)
    return torch.compile(function, dynamic=True)


@lru_cache(maxsize=8)
def _flex_mask(layout: PackedLayout, device: torch.device) -> Any:
    """The `BlockMask` of a row, (T, T), for every batch and head."""
    from torch.nn.attention.flex_attention import create_block_mask

    group = torch.empty(layout.length, dtype=torch.int32)
    branch = torch.zeros(layout.length, dtype=torch.int32)  # 0 in a prompt, else the number of the response
    for g, span in enumerate(layout.groups):
        group[span.start : span.end] = g
        for r, (first, last) in enumerate(span.responses, start=1):
            branch[first:last] = r
    group, branch = group.to(device), branch.to(device)

    def visible(_b: Tensor, _h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        same_branch = (branch[kv] == 0) | (branch[q] == branch[kv])
        return (q >= kv) & (group[q] == group[kv]) & same_branch

    return create_block_mask(visible, None, None, layout.length, layout.length, device=str(device))


AttentionInterface.register(IMPLEMENTATION, packed_attention_forward)
