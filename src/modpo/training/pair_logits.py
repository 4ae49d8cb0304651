"""What a `compute_metrics` of TRL's sees: the logits of every pair's two texts, whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from modpo.forward.logprobs import text_logits
from modpo.forward.packing import unpack


def pair_logits(model: nn.Module, parts: Sequence[Mapping[str, Any]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Logits of B pairs' texts and their token ids, as TRL's trainer hands them on, by forward passes of their own.

    Args:
        parts: of one batch, as `GroupCollator.part` returns them.
        pad_token_id: what fills up shorter texts.

    Returns:
        (2B, S, V), 0 behind a text, and (2B, S): prompt and chosen of all pairs, then prompt and rejected of all.
    """
    pairs = [pair for part in parts for pair in _texts(part)]
    texts = [text for side in zip(*pairs, strict=True) for text in side]
    logits = pad_sequence(text_logits(model, texts), batch_first=True)
    input_ids = pad_sequence(list(map(torch.tensor, texts)), batch_first=True, padding_value=pad_token_id)
    return logits, input_ids.to(logits.device)


def _texts(part: Mapping[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Of each pair of a part: prompt and chosen, prompt and rejected."""
    prompts, groups = (
        unpack(part["packed_row"]) if "packed_row" in part else (part["prompts_ids"], part["responses_ids"])
    )
    texts = [[*prompt, *response] for prompt, group in zip(prompts, groups, strict=True) for response in group]
    return [(texts[chosen], texts[rejected]) for chosen, rejected in part["pairs"].tolist()]
