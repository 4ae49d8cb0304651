"""Answers of a policy: what they depend on, and what they cost in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from modpo.forward.generate import generate
from modpo.forward.sampled import SamplingSettings


@pytest.mark.parametrize("packing", [True, False])
def test_the_model_s_own_generation_settings_do_not_change_the_policy(tiny_model: Path, packing: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = [[5, 6, 7], [8, 9]]
    plain = generate(model, tokenizer, prompts, SamplingSettings([0], 12), packing=packing)
    model.generation_config.repetition_penalty = 50.0
    assert generate(model, tokenizer, prompts, SamplingSettings([0], 12), packing=packing) == plain
    assert model.generation_config.repetition_penalty == 50.0


def test_a_frozen_head_is_not_copied_for_each_answer(tiny_model: Path) -> None:
    """`torch.matmul` copies a head that needs no gradient once for each answer, seen as a batched product."""
    from torch.profiler import ProfilerActivity, profile

    model = AutoModelForCausalLM.from_pretrained(tiny_model).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = tokenizer.eos_token
    prompts = [[1, 2, 3]] * 4
    with profile(activities=[ProfilerActivity.CPU]) as ours:
        answers = generate(model, tokenizer, prompts, SamplingSettings([0], 2), packing=False)
    assert len(answers) == 4
    assert not any(weight.requires_grad for weight in model.parameters())
    names = [event.name for event in ours.events()]
    assert "aten::bmm" not in names
