"""A machine's rates, measured in a few seconds with the model and the prompts that the quickstart is about to use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from modpo.data.groups import PromptGroups
from modpo.data.tokens import tokenize_prompt
from modpo.experiment.sections import Experiment
from modpo.models.matmul_speed import finished
from modpo.models.reference import ReferenceModel
from modpo.quickstart.size import RESPONSES, Rates

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS, NEW_TOKENS = 48, 6  # as many answers at a time as the quickstart makes, but few tokens of each
GROUPS, RESPONSE_TOKENS = 6, 40  # prompts with answers that are read together, and trained on one by one
Ids = Sequence[Sequence[int]]
Group = tuple[Sequence[int], Ids]  # a prompt and its responses


def measure_rates(experiment: Experiment, prompts: PromptGroups) -> Rates:
    """Tokens a second of sampling, reading and training, each as the quickstart does it, after a pass that warms up.

    Args:
        prompts: 48 or more, of which the first are used.
    """
    reference = ReferenceModel.of(experiment, writes=False)
    ids = [tokenize_prompt(group.prompt, reference.tokenizer) for group in prompts[:PROMPTS]]
    texts = [(prompt * RESPONSE_TOKENS)[:RESPONSE_TOKENS] for prompt in ids]  # what is read matters little
    groups = [(ids[i], texts[i * RESPONSES : (i + 1) * RESPONSES]) for i in range(GROUPS)]
    model = reference.model
    sampling = _sampling_rate(model, reference.tokenizer, ids)
    reading = _rate(partial(_read, model), groups, together=GROUPS)
    return Rates(sampling, reading, _rate(_training_step(model, experiment), groups, together=1))


def _rate(work: Callable[[Sequence[Group]], object], groups: Sequence[Group], *, together: int) -> float:
    """Tokens a second of work on so many groups at a time."""
    work(groups[:1])
    started = finished()
    for i in range(0, len(groups), together):
        work(groups[i : i + together])
    tokens = sum(len(prompt) + sum(map(len, responses)) for prompt, responses in groups)
    return tokens / (finished() - started)


def _sampling_rate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Ids) -> float:
    """Tokens of answers a second, without the reading of their prompts."""
    from modpo.forward.generate import generate
    from modpo.forward.sampled import SamplingSettings

    def sample(tokens: int) -> float:
        settings = SamplingSettings(ends=(), max_new_tokens=tokens, answers_per_prompt=RESPONSES)
        started = finished()
        generate(model, tokenizer, ids, settings, packing=True, label="measuring this machine")
        return finished() - started

    first = min(sample(1), sample(1))
    return len(ids) * RESPONSES * (NEW_TOKENS - 1) / max(sample(NEW_TOKENS) - first, 1e-3)


def _read(model: PreTrainedModel, groups: Sequence[Group]) -> None:
    from modpo.forward.frozen import logps_by_group

    ids, responses = zip(*groups, strict=True)
    for _ in logps_by_group(model, ids, responses, packing=True):
        pass


def _training_step(model: PreTrainedModel, experiment: Experiment) -> Callable[[Sequence[Group]], None]:
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
    mixed = torch.autocast(device.type, dtype=model.dtype, enabled=model.dtype != torch.float32)

    def step(groups: Sequence[Group]) -> None:
        row = pack(*zip(*groups, strict=True)).to(device)
        with packed_attention(causal_lm(adapted)), mixed:
            packed_logps(adapted, row).sum().backward()

    return step
