"""What one forward pass says of responses: log-probs to train on, and sums over tokens for the logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modpo.forward.head import TokenReadings, logits_readings
from modpo.forward.logprobs import count_pass, padded_logits, sum_padded
from modpo.forward.packing import PackedRow


class ResponseReadings(NamedTuple):
    """Sums over the tokens of M responses, (M,) each, float32 at least. Only log-probs carry a gradient."""

    logps: Tensor  # nats
    tokens: Tensor  # how many there are
    entropy: Tensor  # of the distribution at each, nats
    mean_logit: Tensor  # the mean over the vocabulary of the logits at each
    top: Tensor  # how many are the likeliest token


def packed_readings(model: nn.Module, row: PackedRow) -> ResponseReadings:
    """Of a packed row's M responses; the model as for `packed_logps`."""
    found: TokenReadings = model(packed_row=row, readings=True)
    count_pass()
    return _sums(found, row.sum_by_response)


def padded_readings(
    model: nn.Module,
    prompts_ids: Sequence[Sequence[int]],
    responses_ids: Sequence[Sequence[Sequence[int]]],
    *,
    pad_to_multiple_of: int | None = None,
) -> ResponseReadings:
    """Of all M responses, each read as a padded sequence of its own, see `padded_logps`."""
    logits, labels, is_response = padded_logits(model, prompts_ids, responses_ids, pad_to_multiple_of)
    return _sums(logits_readings(logits, labels), lambda of_tokens: sum_padded(of_tokens, is_response))


def _sums(found: TokenReadings, by_response: Callable[[Tensor], Tensor]) -> ResponseReadings:
    """Add up each response's tokens, by a function (N,) -> (M,)."""
    of_tokens = (torch.ones_like(found.entropy), found.entropy, found.mean_logit, found.is_top.to(found.entropy))
    with torch.no_grad():
        sums = [by_response(each) for each in of_tokens]
    return ResponseReadings(by_response(found.logps), *sums)
