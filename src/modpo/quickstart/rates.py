"""A machine's rates, measured in a few seconds with the model and the prompts that the quickstart is about to use."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from modpo.data.groups import PromptGroups
from modpo.data.tokens import tokenize_prompt
from modpo.experiment.sections import Experiment
from modpo.models.reference import ReferenceModel
from modpo.quickstart.size import RESPONSES, Rates

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS, NEW_TOKENS = 48, 6  # as many answers at a time as the quickstart makes, but few tokens of each
GROUPS, RESPONSE_TOKENS = 8, 40  # about what a pass of the training reads
Ids = Sequence[Sequence[int]]


def measure_rates(experiment: Experiment, prompts: PromptGroups) -> Rates:
    """Tokens a second of sampling, reading and training: one pass each, after one that warms up.

    Args:
        prompts: 48 or more, of which the first are used.
    """
    reference = ReferenceModel.of(experiment, writes=False)
    ids = [tokenize_prompt(group.prompt, reference.tokenizer) for group in prompts[:PROMPTS]]
    texts = [(prompt * RESPONSE_TOKENS)[:RESPONSE_TOKENS] for prompt in ids]  # what is read matters little
    groups = [texts[i * RESPONSES : (i + 1) * RESPONSES] for i in range(GROUPS)]
    tokens = sum(map(len, ids[:GROUPS])) + GROUPS * RESPONSES * RESPONSE_TOKENS
    model = reference.model
    sampling = _sampling_rate(model, reference.tokenizer, ids)
    reading = tokens / _seconds(lambda: _read(model, ids[:GROUPS], groups))
    step = _training_step(model, experiment, ids[:GROUPS], groups)
    return Rates(sampling, reading, tokens / _seconds(step))


def _seconds(work: Callable[[], object]) -> float:
    """Of the second time."""
    work()
    started = _now()
    work()
    return _now() - started


def _now() -> float:
    """The time, once an accelerator has done what it was given."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def _sampling_rate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Ids) -> float:
    """Tokens of answers a second, without the reading of their prompts."""
    from modpo.forward.generate import generate
    from modpo.forward.sampled import SamplingSettings

    def sample(tokens: int) -> float:
        settings = SamplingSettings(ends=(), max_new_tokens=tokens, answers_per_prompt=RESPONSES)
        started = _now()
        generate(model, tokenizer, ids, settings, packing=True, label="measuring this machine")
        return _now() - started

    first = min(sample(1), sample(1))
    return len(ids) * RESPONSES * (NEW_TOKENS - 1) / max(sample(NEW_TOKENS) - first, 1e-3)


def _read(model: PreTrainedModel, ids: Ids, groups: Sequence[Ids]) -> list[list[float]]:
    from modpo.forward.frozen import logps_by_group

    return list(logps_by_group(model, ids, groups, packing=True))


def _training_step(
    model: PreTrainedModel, experiment: Experiment, ids: Ids, groups: Sequence[Ids]
) -> Callable[[], None]:
    """A pass forward and back through the adapters that the experiment trains. They stay on the model."""
    import torch
    from peft import get_peft_model

    from modpo.forward.attention import packed_attention
    from modpo.forward.logprobs import packed_logps
    from modpo.forward.low_rank import attach_joint_adapters, causal_lm
    from modpo.forward.packing import pack
    from modpo.models.folders import lora_config

    assert experiment.lora is not None
    adapted = get_peft_model(model, lora_config(experiment.lora))
    attach_joint_adapters(adapted)
    device = next(model.parameters()).device
    row = pack(ids, groups).to(device)
    mixed = torch.autocast(device.type, dtype=model.dtype, enabled=model.dtype != torch.float32)

    def step() -> None:
        with packed_attention(causal_lm(adapted)), mixed:
            packed_logps(adapted, row).sum().backward()

    return step
