"""Tokens drawn from logits, each answer by random numbers of its own.

A token is the inverse of the distribution function at one uniform number, looked for in two steps: among blocks of the
vocabulary, then within one. One pass of exponentials gives the token and its log-prob; a draw by `torch.multinomial`
needs a random number for every word of the vocabulary, which costs five times as much.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from modpo.base.errors import NumericError
from modpo.forward.sampled import SamplingSettings

BLOCK = 256  # words of the vocabulary that are summed up before the first look
CHUNK_ELEMENTS = 1 << 20  # float32 logits alive at a time: 4 MiB, which stay in a CPU's cache


def uniforms(settings: SamplingSettings, prompt: int, answer: int) -> Tensor:
    """Numbers in [0, 1) of one answer, (max_new_tokens,) float64: the same whatever else is sampled beside it."""
    key = f"{settings.seed}/{settings.first_prompt + prompt}/{answer}"
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(settings.max_new_tokens, generator=generator, dtype=torch.float64)


def sample_tokens(logits: Tensor, at: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """One token of softmax(logits / temperature) for each row, and its log-prob at temperature 1.

    Args:
        logits: (R, V), any float dtype.
        at: (R,) float64, where in the distribution: uniform numbers in [0, 1).

    Returns:
        (R,) ids; (R,) log-probs in nats, float32 (float64 for float64 logits).

    Raises:
        NumericError: logits that are not finite.
    """
    rows = max(1, CHUNK_ELEMENTS // logits.shape[1])
    drawn = [_draw(*part, temperature) for part in zip(logits.split(rows), at.split(rows), strict=True)]
    tokens, logps = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    if not torch.isfinite(logps).all():
        fix = "look at the model's weights and dtype; train a policy with a lower learning_rate"
        raise NumericError(f"the policy's logits are not finite: there is no next token; fix: {fix}")
    return tokens, logps


def _draw(logits: Tensor, at: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`sample_tokens` of a few rows."""
    shifted = _blocks(logits)  # (R, N, BLOCK)
    shifted -= shifted.amax((1, 2), keepdim=True)
    if temperature == 1:
        exps = shifted.exp()
        tokens, total = _inverse(exps, at)
    else:
        tokens, _ = _inverse((shifted / temperature).exp_(), at)
        total = shifted.exp().sum((1, 2))
    logps = shifted.flatten(1).gather(1, tokens[:, None])[:, 0] - total.log()
    return tokens, logps


def _blocks(logits: Tensor) -> Tensor:
    """(R, V) -> (R, N, BLOCK) in float32 at least, filled up with -inf."""
    rows, vocabulary = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    wide = torch.empty(rows, -(-vocabulary // BLOCK) * BLOCK, dtype=dtype, device=logits.device)
    wide[:, :vocabulary] = logits
    wide[:, vocabulary:] = float("-inf")
    return wide.view(rows, -1, BLOCK)


def _inverse(exps: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """The first word of (R, N, BLOCK) up to which the share of the sum is beyond `at`, (R,); and the sums, (R,)."""
    by_block = exps.sum(2)  # (R, N)
    up_to_block = by_block.double().cumsum(1)
    wanted = at[:, None] * up_to_block[:, -1:]
    block = torch.searchsorted(up_to_block, wanted, right=True).clamp_(max=by_block.shape[1] - 1)  # (R, 1)
    size = by_block.gather(1, block).double()
    share = (wanted - up_to_block.gather(1, block) + size) / size  # of the block, below 1 but for rounding
    words = exps.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].double().cumsum(1)
    share = share.clamp(0, 1 - 1e-12)
    word = torch.searchsorted(words, share * words[:, -1:], right=True).clamp_(max=BLOCK - 1)
    return (block * BLOCK + word)[:, 0], by_block.sum(1)
