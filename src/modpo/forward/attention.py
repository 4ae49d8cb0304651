"""Attention of a packed row, registered with transformers' `AttentionInterface` as `modpo_packed`.

The row is cut into branches (`branches.py`). Each multiplies against the keys it may see and few others: part of a
prompt against the prompt so far, part of a response against its prompt and itself. Only the probabilities of one batch
of branches exist at a time; the backward pass computes them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from modpo.forward import branches
from modpo.forward.branches import Batch, Plan
from modpo.forward.packing import PackedLayout

IMPLEMENTATION = "modpo_packed"
FLEX_COMPILATIONS = 64  # of flex attention, at most: see `_compiled`
# Arguments of models whose attention is more than softmax(q k) v: refused, since dropping them would be silent.
UNSUPPORTED_ARGUMENTS = ("sliding_window", "softcap", "position_bias", "s_aux", "cache")


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
    """Exact attention of a packed row, a batch of branches at a time, q already scaled; see `forward`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout) -> Tensor:
        """q (H, T, D), k (H_kv, T, D), v (H_kv, T, D_v) -> (T, H, D_v)."""
        H, T, H_kv = len(q), q.shape[1], len(k)
        q, k, v = (_by_kv_head(x, H_kv) for x in (q, k, v))
        plan = branches.plan(layout, H_kv, q.dtype, q.device)
        parts = []
        for batch in plan.batches:
            q_b, k_b, v_b = _queries(q, batch, k.shape[-1]), _keys(k, batch), _keys(v, batch)
            parts.append(_probabilities(q_b, k_b, batch) @ v_b)
        ctx.save_for_backward(q, k, v)
        ctx.plan, ctx.heads = plan, (H, H_kv)
        return _in_order(parts, plan, H // H_kv).view(T, H, -1)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """d_out (T, H, D_v) -> gradients of q (H, T, D), k (H_kv, T, D), v (H_kv, T, D_v)."""
        q, k, v = ctx.saved_tensors
        plan, (H, H_kv) = ctx.plan, ctx.heads
        d_out = d_out.reshape(len(k), -1)
        dq, dk, dv = [], [], []
        for batch in plan.batches:
            q_b, k_b, v_b = _queries(q, batch, k.shape[-1]), _keys(k, batch), _keys(v, batch)
            g_b = _queries(d_out, batch, v.shape[-1])
            if batch.real is not None:
                g_b.view(batch.branches, H_kv, batch.R, -1).mul_(batch.real)
            probs = _probabilities(q_b, k_b, batch)
            d_probs = g_b @ v_b.transpose(1, 2)
            # d softmax: p * (dp - sum(p dp)); one fused pass over the block
            d_scores = torch.ops.aten._softmax_backward_data(d_probs, probs, -1, probs.dtype)
            dq.append(d_scores @ k_b)
            dk.append(d_scores.transpose(1, 2) @ q_b)
            dv.append(probs.transpose(1, 2) @ g_b)
        by_position = _in_order(dq, plan, H // H_kv).view(-1, H, q.shape[-1] * H_kv // H)
        return by_position.transpose(0, 1), _to_keys(dk, plan, H_kv), _to_keys(dv, plan, H_kv), None


def _probabilities(q_b: Tensor, k_b: Tensor, batch: Batch) -> Tensor:
    """q_b (B H_kv, R G, D), k_b (B H_kv, K, D) -> (B H_kv, R G, K).

    The softmax of a bfloat16 tensor is computed in float32 and rounded once.
    """
    scores = q_b @ k_b.transpose(1, 2)
    C = batch.bias.shape[-1]
    scores.view(batch.branches, -1, batch.R, q_b.shape[1] // batch.R, scores.shape[-1])[..., -C:].add_(batch.bias)
    return torch.softmax(scores, dim=-1)


def _by_kv_head(x: Tensor, kv_heads: int) -> Tensor:
    """(H, T, D) -> (T H_kv, G D): the G query heads of a key head beside one another."""
    return x.transpose(0, 1).reshape(x.shape[1] * kv_heads, -1)


def _queries(x: Tensor, batch: Batch, D: int) -> Tensor:
    """(T H_kv, G D) -> (B H_kv, R G, D): what the batch has of it."""
    return x.index_select(0, batch.rows).view(len(batch.rows) // batch.R, -1, D)


def _keys(x: Tensor, batch: Batch) -> Tensor:
    """(T H_kv, D) -> (B H_kv, K, D)."""
    return x.index_select(0, batch.keys).view(-1, batch.P + batch.R, x.shape[-1])


def _in_order(parts: list[Tensor], plan: Plan, G: int) -> Tensor:
    """Of every batch (B H_kv, R G, D) -> (T H_kv, G D)."""
    flat = [part.view(-1, G * part.shape[-1]) for part in parts]
    return (torch.cat(flat) if len(flat) > 1 else flat[0]).index_select(0, plan.places)


def _to_keys(parts: list[Tensor], plan: Plan, kv_heads: int) -> Tensor:
    """Gradients of every batch's keys, (B H_kv, K, D) -> of all, (H_kv, T, D).

    Many branches add to a prompt's keys: those of a batch by a product in their own number format, whose sum is rounded
    to it, and the batches' sums in float32, rounded at the end.
    """
    dtype, D = parts[0].dtype, parts[0].shape[-1]
    own = [part[:, batch.P :].reshape(-1, D) for part, batch in zip(parts, plan.batches, strict=True)]
    total = _in_order(own, plan, 1).to(torch.promote_types(dtype, torch.float32)).view(-1, kv_heads, D)
    for part, batch in zip(parts, plan.batches, strict=True):
        if not any(batch.prefixes):
            continue
        of_prefixes = part[:, : batch.P].reshape(batch.branches, -1)
        if batch.members is not None:
            of_prefixes = batch.members @ of_prefixes
        of_prefixes = of_prefixes.view(len(batch.prefixes), kv_heads, batch.P, D).transpose(1, 2)  # (S, P, H_kv, D)
        for each, prefix in zip(of_prefixes, batch.prefixes, strict=True):
            at = 0
            for first, last in prefix:
                total[first:last] += each[at : at + last - first]
                at += last - first
    return total.to(dtype).transpose(0, 1)


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
