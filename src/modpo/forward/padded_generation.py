"""Answers by transformers' own `generate`, which every causal language model has: batches padded on the left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from modpo.base.costs import count
from modpo.forward.low_rank import causal_lm
from modpo.forward.rope import fixed_up_to, forget_longer_rows, read_together
from modpo.forward.sampled import SamplingSettings


def generate_padded(
    model: PreTrainedModel | PeftModel,
    pad: int,
    prompts_ids: Sequence[Sequence[int]],
    settings: SamplingSettings,
    advance: Callable[[float], None],
    *,
    order: Sequence[int],
    batch_size: int,
) -> list[list[list[int]]]:
    """Token ids of all answers to N prompts. Each batch is seeded by itself.

    Args:
        order: of the prompts; those of one batch share a length where they may grow so long that rope depends on it.
    """
    limit, answers = fixed_up_to(model.config), settings.answers_per_prompt
    waiting = [(i, j) for i in order for j in range(answers)]
    found: dict[tuple[int, int], list[int]] = {}
    while waiting:
        longest = [len(prompts_ids[i]) + settings.max_new_tokens for i, _ in waiting[:batch_size]]
        batch = waiting[: len(read_together(longest, limit)[0])]
        torch.manual_seed(settings.seed + settings.first_prompt * answers + len(found))
        if limit is not None:
            forget_longer_rows(model)
        sampled = _sample(model, [prompts_ids[i] for i, _ in batch], pad, settings, advance)
        found.update(zip(batch, sampled, strict=True))
        waiting = waiting[len(batch) :]
    return [[found[i, j] for j in range(answers)] for i in range(len(prompts_ids))]


def _sample(
    model: PreTrainedModel | PeftModel,
    prompts_ids: list[Sequence[int]],
    pad: int,
    settings: SamplingSettings,
    advance: Callable[[float], None],
) -> list[list[int]]:
    """Answers to the B prompts of one batch, which is padded to (B, W) and continued to (B, W + max_new_tokens)."""
    prompts = [torch.tensor(ids) for ids in prompts_ids]
    padded = partial(pad_sequence, batch_first=True, padding_side="left")  # so that answers start side by side
    input_ids, attention_mask = padded(prompts, padding_value=pad), padded([torch.ones_like(ids) for ids in prompts])
    width, device = input_ids.shape[1], next(model.parameters()).device
    told = _Told(len(prompts), settings.max_new_tokens, advance)
    with bare_generation(model), folded_head(model):
        out = model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            do_sample=True,
            temperature=settings.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=list(settings.ends),
            pad_token_id=pad,
            streamer=told,
        )
    # Up to and with the first end token: what follows in a batch is padding.
    new = out[:, width:].tolist()
    answers = [next((ids[:n] for n, token in enumerate(ids, 1) if token in settings.ends), ids) for ids in new]
    count(tokens_generated=sum(map(len, answers)), forward_passes=out.shape[1] - width)
    return answers


class _Told(BaseStreamer):
    """Hears of every pass of a batch, and tells what share of its answers that is."""

    def __init__(self, answers: int, passes: int, advance: Callable[[float], None]) -> None:
        self.left, self.share, self.advance, self.heard = float(answers), answers / passes, advance, 0

    def put(self, value: torch.Tensor) -> None:
        """The prompts, then the tokens of a pass."""
        self.heard += 1
        if self.heard > 1:
            self.advance(min(self.share, self.left))
            self.left -= min(self.share, self.left)

    def end(self) -> None:
        """Every answer has ended, some of them early."""
        self.advance(self.left)


@contextmanager
def bare_generation(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Within it, none of the model's own generation settings: a repetition penalty, for one, is not the policy's."""
    base = causal_lm(model)
    settings = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = settings


@contextmanager
def folded_head(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Within it, the head's weights ask for a gradient, though none is computed.

    Without, `torch.matmul` does not fold the batch of last hidden states, a slice, into one matrix product: it copies
    the head's weights once for each answer (13 GB for 224 answers of a model with 135M parameters, and 2.5 times the
    seconds of generation on a CPU).
    """
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or weight.requires_grad or not weight.is_floating_point():
        yield
        return
    weight.requires_grad_(True)
    try:
        yield
    finally:
        weight.requires_grad_(False)
