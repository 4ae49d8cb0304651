"""What the logs say of one part of a batch: TRL's metrics, each as a total and a count.

Totals and counts add up over parts, batches, steps and processes, so that what is logged is a mean over pairs (of
`entropy`, `logits/*` and `mean_token_accuracy` over tokens) however they were batched. A response that stands in
several pairs counts in each, as in TRL's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modpo.forward.readings import ResponseReadings

Totals = dict[str, tuple[Tensor, Tensor]]  # by metric: total and count, () each


def reward_totals(prefix: str, chosen: Tensor, rejected: Tensor) -> Totals:
    """Of implicit rewards of B pairs, (B,) each: their means, how far and how often the chosen one lies above."""
    return _of_pairs(
        {
            f"{prefix}/chosen": chosen,
            f"{prefix}/rejected": rejected,
            f"{prefix}/accuracies": (chosen > rejected).float(),
            f"{prefix}/margins": chosen - rejected,
        }
    )


def response_totals(found: ResponseReadings, pairs: Tensor) -> Totals:
    """Of log-probs, (M,), and sums over tokens of the responses to which B pairs point, (B, 2)."""
    chosen, rejected = pairs.unbind(1)
    return {
        **_of_pairs({"logps/chosen": found.logps[chosen], "logps/rejected": found.logps[rejected]}),
        "entropy": (found.entropy[pairs].sum(), found.tokens[pairs].sum()),
        "logits/chosen": (found.mean_logit[chosen].sum(), found.tokens[chosen].sum()),
        "logits/rejected": (found.mean_logit[rejected].sum(), found.tokens[rejected].sum()),
        "mean_token_accuracy": (found.top[chosen].sum(), found.tokens[chosen].sum()),
    }


def margin_totals(names: Sequence[str], margins: Tensor, pairs: Tensor, primaries: Tensor) -> Totals:
    """Of margin rewards of M responses by K objectives, (M, K): chosen less rejected where it is not the primary."""
    differences = margins[pairs[:, 0]] - margins[pairs[:, 1]]  # (B, K)
    return {f"margins/{name}": total(differences[primaries != i, i]) for i, name in enumerate(names)}


def tokens_read(parts: Sequence[Mapping[str, Any]], *, padding: bool) -> int:
    """Tokens that the model reads of a batch's parts, with `padding` also those that only fill up padded rows."""
    return sum(_padded_tokens(part) if padding and "packed_row" not in part else part["tokens"] for part in parts)


def _padded_tokens(part: Mapping[str, Any]) -> int:
    groups = zip(part["prompts_ids"], part["responses_ids"], strict=True)
    lengths = [len(prompt) + len(response) for prompt, group in groups for response in group]
    return len(lengths) * max(lengths)


def _of_pairs(values: Mapping[str, Tensor]) -> Totals:
    return {name: total(each) for name, each in values.items()}


def total(values: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) numbers -> their sum and n."""
    return values.sum(), torch.tensor(len(values), device=values.device)
