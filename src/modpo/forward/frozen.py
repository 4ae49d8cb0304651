"""Log-probs of responses under a model that is not being trained: the reference's, a policy's that is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from modpo.forward.attention import packed_attention
from modpo.forward.logprobs import packed_logps, padded_logps
from modpo.forward.low_rank import causal_lm, evaluating
from modpo.forward.packability import require_packable
from modpo.forward.packing import pack, packed_tokens, runs

TOKENS_PER_FORWARD = 4096  # packed tokens that are read at a time


@torch.no_grad()
def reference_logps(
    model: PreTrainedModel | PeftModel,
    prompts_ids: Sequence[Sequence[int]],
    responses_ids: Sequence[Sequence[Sequence[int]]],
    *,
    packing: bool,
    autocast: torch.dtype | None = None,
) -> list[float]:
    """Log-probs of all M responses under a model that is not being trained, a list of M. Without dropout.

    Args:
        autocast: the number format of mixed precision, in which the model is read; None: its own.
    """
    mixed = torch.autocast(next(model.parameters()).device.type, dtype=autocast, enabled=autocast is not None)
    if not packing:
        alone = zip(prompts_ids, responses_ids, strict=True)
        with evaluating(model), mixed:
            return [logp for prompt, group in alone for logp in padded_logps(model, [prompt], [group]).tolist()]
    inner = causal_lm(model)
    if not getattr(inner.forward, "takes_packed_rows", False):
        require_packable(model)
    with evaluating(model), packed_attention(inner), mixed:
        row = pack(prompts_ids, responses_ids).to(next(model.parameters()).device)
        return packed_logps(model, row).tolist()


def logps_by_group(
    model: PreTrainedModel | PeftModel,
    prompts_ids: Sequence[Sequence[int]],
    responses_ids: Sequence[Sequence[Sequence[int]]],
    *,
    packing: bool,
    autocast: torch.dtype | None = None,
) -> Iterator[list[float]]:
    """`reference_logps` of any number of groups, one list each, read in passes of at most TOKENS_PER_FORWARD."""
    sizes = [packed_tokens(prompt, group) for prompt, group in zip(prompts_ids, responses_ids, strict=True)]
    for part in runs(sizes, TOKENS_PER_FORWARD):
        read = reference_logps(model, prompts_ids[part], responses_ids[part], packing=packing, autocast=autocast)
        flat = iter(read)
        for group in responses_ids[part]:
            yield [next(flat) for _ in group]
