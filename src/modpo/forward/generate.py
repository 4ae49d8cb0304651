"""Answers of a policy to prompts: batched, seeded, with progress."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from modpo.base.costs import count
from modpo.base.progress import Progress
from modpo.forward.low_rank import causal_lm, evaluating
from modpo.forward.rope import fixed_up_to, forget_longer_rows, read_together


@torch.no_grad()
def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts_ids: Sequence[Sequence[int]],
    *,
    ends: Collection[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    batch_size: int = 48,
    seed: int = 0,
    label: str = "generate",
) -> list[list[int]]:
    """Sample one answer to each prompt from softmax(logits / temperature), nothing cut off.

    Prompts of like length share a batch; of one length, where they may grow so long that rope depends on it. Each
    batch is seeded by itself, so its answers depend on `seed` and the prompts alone. An answer ends with its end token
    unless `max_new_tokens` cut it.

    Args:
        prompts_ids: see `modpo.data.tokens.tokenize_prompt`.
        ends: tokens that end an answer, see `modpo.data.chat_template.stop_ids`.

    Returns:
        Token ids of the answers, in the prompts' order.
    """
    order = sorted(range(len(prompts_ids)), key=lambda i: len(prompts_ids[i]))
    limit = fixed_up_to(model.config)
    answers: dict[int, list[int]] = {}
    pad = int(tokenizer.pad_token_id)
    with evaluating(model), Progress(label, len(order), "answers") as progress:
        while len(answers) < len(order):
            start = len(answers)
            longest = [len(prompts_ids[i]) + max_new_tokens for i in order[start : start + batch_size]]
            batch = order[start : start + len(read_together(longest, limit)[0])]
            torch.manual_seed(seed + start)
            if limit is not None:
                forget_longer_rows(model)
            prompts = [prompts_ids[i] for i in batch]
            sampled = _sample(model, prompts, ends, pad, max_new_tokens=max_new_tokens, temperature=temperature)
            answers.update(zip(batch, sampled, strict=True))
            progress.advance(len(batch))
    return [answers[i] for i in range(len(prompts_ids))]


def _sample(
    model: PreTrainedModel | PeftModel,
    prompts_ids: list[Sequence[int]],
    ends: Collection[int],
    pad: int,
    **settings: Any,
) -> list[list[int]]:
    """Answers to the B prompts of one batch, which is padded to (B, W) and continued to (B, W + max_new_tokens)."""
    prompts = [torch.tensor(ids) for ids in prompts_ids]
    padded = partial(pad_sequence, batch_first=True, padding_side="left")  # so that answers start side by side
    input_ids, attention_mask = padded(prompts, padding_value=pad), padded([torch.ones_like(ids) for ids in prompts])
    width, device = input_ids.shape[1], next(model.parameters()).device
    with bare_generation(model), folded_head(model):
        out = model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            eos_token_id=list(ends),
            pad_token_id=pad,
            **settings,
        )
    # Up to and with the first end token: what follows in a batch is padding.
    new = out[:, width:].tolist()
    answers = [next((ids[:n] for n, token in enumerate(ids, start=1) if token in ends), ids) for ids in new]
    count(tokens_generated=sum(map(len, answers)), forward_passes=out.shape[1] - width)
    return answers


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
