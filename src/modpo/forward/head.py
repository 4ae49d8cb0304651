"""The language model head at the tokens of responses: their log-probs, and what the logs say of them.

Logits are made a chunk at a time and never kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 23  # logits alive at a time: 32 MiB in float32. Larger ones are new pages each time: slow.
ROWS_OF_WEIGHTS = 2048  # of the head that are summed up at a time


class TokenReadings(NamedTuple):
    """What a model says of N response tokens, (N,) each. Only log-probs carry a gradient."""

    logps: Tensor  # nats
    entropy: Tensor  # of the distribution of which the token is one outcome, nats
    mean_logit: Tensor  # over the vocabulary
    is_top: Tensor  # bool: whether no token is likelier


def head_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """log softmax(hidden weight^T + bias)[label] for each position, without keeping logits.

    Args:
        hidden: (N, H). weight: (V, H), the language model head. bias: (V,) or None. labels: (N,).

    Returns:
        (N,), float32 (float64 for float64 inputs).
    """
    logps: Tensor = _HeadLogps.apply(*_in_one_dtype(hidden, weight, bias), labels, False)
    return logps


def head_readings(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> TokenReadings:
    """`head_logps` with what else the same logits say of each position."""
    hidden, weight, bias = _in_one_dtype(hidden, weight, bias)
    logps, entropy, is_top = _HeadLogps.apply(hidden, weight, bias, labels, True)
    with torch.no_grad():  # the mean over the vocabulary of a linear map is a linear map
        mean_logit = hidden.to(logps.dtype) @ _mean_row(weight, logps.dtype)
        if bias is not None:
            mean_logit += bias.mean(dtype=logps.dtype)
    return TokenReadings(logps, entropy, mean_logit, is_top)


def logits_readings(logits: Tensor, labels: Tensor) -> TokenReadings:
    """The same from logits that are there, (N, V), in the plainest way: the oracle of `head_readings`."""
    log_probs = wide(logits).log_softmax(-1)
    logps = log_probs.gather(1, labels[:, None])[:, 0]
    with torch.no_grad():
        entropy = -torch.cat([(part.exp() * part).sum(-1) for part in log_probs.split(_rows(logits.shape[1]))])
        return TokenReadings(logps, entropy, wide(logits).mean(-1), logps == log_probs.amax(-1))


def _mean_row(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(V, H) -> (H,), summed in `dtype`, of which no copy of the whole is made."""
    return torch.stack([part.sum(0, dtype=dtype) for part in weight.split(ROWS_OF_WEIGHTS)]).sum(0) / len(weight)


def wide(logits: Tensor) -> Tensor:
    """Logits in float32 at least: no softmax is taken in 16 bits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _in_one_dtype(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the head multiplies, under autocast in its number format."""
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        weight, bias = weight.to(dtype), bias.to(dtype) if bias is not None else None
    return hidden.to(weight.dtype), weight, bias


def _rows(vocabulary: int) -> int:
    """At how many positions logits have at most CHUNK_ELEMENTS elements, one at least."""
    return max(1, CHUNK_ELEMENTS // vocabulary)


def _chunks(positions: int, vocabulary: int) -> Sequence[slice]:
    """Slices of n positions whose logits, (n, V), are alive together."""
    rows = _rows(vocabulary)
    return [slice(a, min(a + rows, positions)) for a in range(0, positions, rows)]


class _Room:
    """Where the logits of one chunk after the other are put: new memory for each would cost as much as its exps."""

    def __init__(self, hidden: Tensor, weight: Tensor) -> None:
        rows, V = min(len(hidden), _rows(len(weight))), len(weight)
        self._narrow = hidden.new_empty(rows, V)
        self._wide = wide(self._narrow) if hidden.dtype.itemsize < 4 else self._narrow

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """hidden (n, H), weight (V, H) -> logits (n, V), float32 at least."""
        narrow, n = self._narrow[: len(hidden)], len(hidden)
        if bias is None:
            torch.mm(hidden, weight.T, out=narrow)
        else:
            torch.addmm(bias, hidden, weight.T, out=narrow)
        return narrow if self._wide is self._narrow else self._wide[:n].copy_(narrow)

    def narrow(self, wide: Tensor) -> Tensor:
        """(n, V) in the number format of the weights, over the logits."""
        return wide if self._wide is self._narrow else self._narrow[: len(wide)].copy_(wide)


class _HeadLogps(torch.autograd.Function):
    """With a frozen head, d logp / d hidden needs nothing of the backward pass: it is computed from the same logits.

    With a trained one, the logits are computed again in the backward pass, chunk by chunk.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, readings: bool) -> Any:
        """hidden (N, H), weight (V, H), bias (V,), labels (N,) -> logps (N,), with `readings` also entropy and is_top.

        With z the logits, largest their maximum, p their softmax and E the mean under p:
        entropy = log sum exp(z - largest) - E[z - largest]. A frozen head computes E[weight], (H,), for the slope, and
        then E[z] = hidden . E[weight] + E[bias] costs nothing.
        """
        ctx.frozen = not any(ctx.needs_input_grad[1:3])
        slope = torch.empty_like(hidden) if ctx.frozen and ctx.needs_input_grad[0] else None
        found: list[tuple[Tensor, ...]] = []
        room = _Room(hidden, weight)
        for chunk in _chunks(len(hidden), len(weight)):
            logits, label = room.logits(hidden[chunk], weight, bias), labels[chunk, None]
            largest = logits.amax(-1, keepdim=True)
            at_label = logits.gather(1, label) - largest  # (n, 1), as all that follow
            shifted = logits.sub_(largest)
            exps = shifted.exp() if readings and slope is None else shifted.exp_()
            total = exps.sum(-1, keepdim=True)
            if slope is not None:
                probs = room.narrow(exps.div_(total))
                expected = probs @ weight  # (n, H)
                slope[chunk] = weight[labels[chunk]] - expected
            if not readings:
                found.append((at_label - total.log(),))
                continue
            if slope is None:
                mean = exps.mul_(shifted).sum(-1, keepdim=True) / total
            else:
                mean = (wide(hidden[chunk]) * wide(expected)).sum(-1, keepdim=True) - largest
                mean += wide(probs @ bias[:, None]) if bias is not None else 0
            found.append((at_label - total.log(), total.log() - mean, at_label == 0))
        ctx.save_for_backward(*((slope,) if ctx.frozen else (hidden, weight, bias, labels)))
        logps, *others = (torch.cat(parts).squeeze(1) for parts in zip(*found, strict=True))
        ctx.mark_non_differentiable(*others)
        return (logps, *others) if readings else logps

    @staticmethod
    def backward(ctx: Any, d_logps: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        """d_logps (N,) -> gradients of hidden (N, H), and of a trained head: weight (V, H) and bias (V,)."""
        if ctx.frozen:
            (slope,) = ctx.saved_tensors
            return d_logps[:, None].to(slope.dtype) * slope, None, None, None, None
        hidden, weight, bias, labels = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        d_bias = torch.zeros_like(d_weight[:, 0]) if bias is not None else None
        room = _Room(hidden, weight)
        for chunk in _chunks(len(hidden), len(weight)):
            probs = torch.softmax(room.logits(hidden[chunk], weight, bias), dim=-1)
            d_logits = -probs * d_logps[chunk, None]
            d_logits.scatter_add_(1, labels[chunk, None], d_logps[chunk, None].to(d_logits.dtype))
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            narrow = d_logits.to(weight.dtype)
            d_hidden[chunk] = narrow @ weight
            d_weight += narrow.T @ hidden[chunk]
        narrow_bias = d_bias.to(bias.dtype) if d_bias is not None else None
        return d_hidden, d_weight.to(weight.dtype), narrow_bias, None, None
