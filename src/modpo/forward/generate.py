"""Answers of a policy to prompts: batched, seeded, with progress."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modpo.base.progress import Progress
from modpo.forward.attention import packed_attention
from modpo.forward.decode_attention import IMPLEMENTATION
from modpo.forward.decoding import Decoder
from modpo.forward.low_rank import causal_lm, evaluating
from modpo.forward.packability import require_packable
from modpo.forward.padded_generation import generate_padded
from modpo.forward.prepacked import prepacked
from modpo.forward.sampled import SampledAnswer, SamplingSettings

NO_FLOAT64 = "mps"  # a device on which tokens cannot be drawn as `sampling` draws them


@torch.no_grad()
def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: Sequence[Sequence[int]],
    settings: SamplingSettings,
    *,
    packing: bool,
    batch_size: int = 192,
    label: str = "generate",
) -> list[list[SampledAnswer]]:
    """Sample answers to each prompt from softmax(logits / temperature), nothing cut off.

    Args:
        prompts_ids: of N prompts, see `modpo.data.tokens.tokenize_prompt`.
        packing: whether the model can read packed rows, see `modpo.forward.packing_choice`. If it can, a prompt is
            read once for its answers, which depend on the seed, the prompts and rounding alone; if not, transformers'
            own `generate` reads every answer with its prompt, and what shares a batch shares random numbers.
        batch_size: answers that are made at a time.

    Returns:
        For each prompt its answers, in the prompts' order; read packed they come with their log-probs.

    Raises:
        InputError: the model cannot read packed rows. NumericError: its logits are not finite.
    """
    order = sorted(range(len(prompts_ids)), key=lambda i: len(prompts_ids[i]))
    total = len(order) * settings.answers_per_prompt
    with evaluating(model), Progress(label, total, "answers") as progress:
        if packing and model.device.type != NO_FLOAT64:
            inner = causal_lm(model)
            if not getattr(inner.forward, "takes_packed_rows", False):
                require_packable(model)
            with packed_attention(inner, IMPLEMENTATION), prepacked(inner):
                return Decoder(inner, prompts_ids, settings, progress.advance).decode(order, batch_size)
        pad = int(tokenizer.pad_token_id)
        ids = generate_padded(model, pad, prompts_ids, settings, progress.advance, order=order, batch_size=batch_size)
    return [[SampledAnswer(answer) for answer in group] for group in ids]
