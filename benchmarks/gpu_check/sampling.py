"""Sampling: answers a second beside `transformers.generate`, and whether they are what the policy says they are."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from benchmarks.gpu_check.machine import synchronize
from benchmarks.gpu_check.rows import MEASURED, Row, judged
from benchmarks.gpu_check.setting import Setting
from benchmarks.preference_rows import single_pair_rows
from modpo.forward.frozen import logps_by_group
from modpo.forward.generate import generate
from modpo.forward.sampled import SampledAnswer, SamplingSettings
from modpo.models.folders import device

ANSWERS = 4  # to each prompt
MOST_SIGMA = 5.0  # of the drawn share of a token, from its probability
MOST_APART = 0.02  # of an answer's log-prob in bfloat16, sampled and read

Prompts = list[list[int]]


def check(setting: Setting) -> Iterator[Row]:
    prompts, new = (4, 8) if setting.small else (48, 64)
    tokenizer = AutoTokenizer.from_pretrained(setting.model)
    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.bfloat16).to(device()).eval()
    ids = [tokenizer(row["prompt"])["input_ids"] for row in single_pair_rows(None, prompts)]
    # No token ends an answer, so that both sides draw the same number of tokens.
    given = sampled(model, tokenizer, ids, SamplingSettings([], new, ANSWERS))
    ours = seconds_of(lambda: sampled(model, tokenizer, ids, SamplingSettings([], new, ANSWERS)))
    theirs = seconds_of(lambda: plain_generate(model, tokenizer, ids, new))
    tokens = len(ids) * ANSWERS * new
    result = f"{tokens / ours:,.0f} tokens/s, transformers {tokens / theirs:,.0f}: {theirs / ours:.1f} times the speed"
    numbers = {"tokens_per_second": tokens / ours, "transformers": tokens / theirs, "speed_ratio": theirs / ours}
    yield Row("sampling", f"{prompts} prompts, {ANSWERS} answers, {new} tokens", result, MEASURED, numbers)
    yield read_again(model, ids, given)
    yield drawn_as_likely(model, tokenizer, ids[0], 200 if setting.small else 4000)


def sampled(model: Any, tokenizer: Any, ids: Prompts, settings: SamplingSettings) -> list[list[SampledAnswer]]:
    return generate(model, tokenizer, ids, settings, packing=True, batch_size=1000)


def seconds_of(sample: Any) -> float:
    """The better of two runs, after one that warms up."""
    seconds = []
    for _ in range(3):
        synchronize()
        started = time.perf_counter()
        sample()
        synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def plain_generate(model: Any, tokenizer: Any, ids: Prompts, new: int) -> torch.Tensor:
    """What transformers does with a padded batch, (B, W + new), without settings of the model's own."""
    prompts = [torch.tensor(text, device=model.device) for text in ids]
    padded = pad_sequence(prompts, batch_first=True, padding_side="left", padding_value=tokenizer.pad_token_id)
    mask = pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left")
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with torch.no_grad():
            out: torch.Tensor = model.generate(
                input_ids=padded,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                num_return_sequences=ANSWERS,
                max_new_tokens=new,
                pad_token_id=tokenizer.pad_token_id,
            )
    finally:
        model.generation_config = own
    return out


def read_again(model: Any, ids: Prompts, given: list[list[SampledAnswer]]) -> Row:
    """Log-probs that come with the answers against those of the same answers read packed."""
    read = logps_by_group(model, ids, [[answer.ids for answer in group] for group in given], packing=True)
    apart = [
        abs((answer.logp or 0.0) - logp) / max(1.0, abs(logp))
        for group, logps in zip(given, read, strict=True)
        for answer, logp in zip(group, logps, strict=True)
    ]
    mean = sum(apart) / len(apart)
    result = f"{len(apart)} answers: {mean:.1e} apart, at most {max(apart):.1e}"
    return judged("sampling", "log-probs as when read again", result, mean <= MOST_APART, apart=mean)


def drawn_as_likely(model: Any, tokenizer: Any, ids: list[int], draws: int) -> Row:
    """One token each, drawn often: the commonest tokens' shares against their probabilities."""
    (answers,) = sampled(model, tokenizer, [ids], SamplingSettings([], 1, draws))
    shares = Counter(answer.ids[0] for answer in answers)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1]
    likely = logits.float().softmax(-1).topk(20)
    off = [
        abs(shares[token] - p * draws) / max(1.0, (draws * p * (1 - p)) ** 0.5)
        for p, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True)
    ]
    result = f"{draws} draws: shares of the 20 likeliest tokens within {max(off):.1f} standard errors"
    return judged("sampling", "first tokens as likely as they are", result, max(off) <= MOST_SIGMA, sigma=max(off))
