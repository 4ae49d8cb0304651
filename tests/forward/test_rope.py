"""Rope whose frequencies depend on the longest row of a forward pass: each row is read as it is alone."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from modpo.base.errors import InputError
from modpo.forward.frozen import logps_by_group, reference_logps
from modpo.forward.generate import generate
from modpo.forward.logprobs import padded_logps
from modpo.forward.packability import choose_packing
from modpo.forward.packing_needs import Needs
from modpo.forward.rope import fixed_up_to, read_together
from modpo.forward.sampled import SamplingSettings

VOCABULARY, SWITCH = 48, 64
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + i for i in range(8)],
    "rope_theta": 10000.0,
    "original_max_position_embeddings": SWITCH,
}
MODELS = {
    "dynamic": ("Llama", {"max_position_embeddings": SWITCH, "rope_parameters": DYNAMIC}),
    "longrope": (
        "Phi3",
        {
            "max_position_embeddings": 512,
            "original_max_position_embeddings": SWITCH,
            "rope_parameters": LONGROPE,
            "sliding_window": None,
        },
    ),
}
kinds = pytest.mark.parametrize("kind", MODELS)


def build(kind: str) -> PreTrainedModel:
    """A random model whose attention is so sharp that its log-probs depend on positions by nats."""
    name, settings = MODELS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**SMALL, **settings)).float()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8
    return model.eval()


def text(length: int, seed: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


# Rows on both sides of the switch and on it, of one length and of several, in an order that goes up and down.
PROMPTS = [text(7, 1), text(50, 2), text(90, 3), text(7, 4), text(80, 5)]
RESPONSES = [
    [text(5, 11), text(9, 12)],
    [text(30, 13), text(5, 14), text(14, 15)],  # 80, 55 and exactly 64 tokens
    [text(20, 16), text(20, 17)],
    [text(3, 18)],
    [text(30, 19)],
]


def alone(kind: str, prompt: list[int], response: list[int]) -> float:
    """log pi(y|x) by one plain sequence, of a model that has read nothing before."""
    with torch.no_grad():
        logits = build(kind)(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum().item()


def all_alone(kind: str) -> list[float]:
    return [alone(kind, p, r) for p, group in zip(PROMPTS, RESPONSES, strict=True) for r in group]


@kinds
def test_rows_depend_on_the_others_where_nothing_is_done(kind: str):
    """The tests below would notice: a short row that is simply padded beside a long one is tenths of nats off."""
    model, short, long = build(kind), PROMPTS[0] + RESPONSES[0][0], PROMPTS[2] + RESPONSES[2][0]
    ids = torch.tensor([short + [0] * (len(long) - len(short)), long])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits[0, len(PROMPTS[0]) - 1 : len(short) - 1]
    beside = logits.log_softmax(-1).gather(1, torch.tensor(RESPONSES[0][0])[:, None]).sum().item()
    assert abs(beside - alone(kind, PROMPTS[0], RESPONSES[0][0])) > 0.1


@kinds
def test_padded_rows_are_read_as_they_are_alone(kind: str):
    expected = all_alone(kind)
    model = build(kind)
    with torch.no_grad():
        assert padded_logps(model, PROMPTS, RESPONSES).tolist() == pytest.approx(expected, abs=1e-3)
        backwards = padded_logps(model, PROMPTS[::-1], RESPONSES[::-1]).tolist()
        assert sorted(backwards) == pytest.approx(sorted(expected), abs=1e-3)  # whatever was read before
    by_group = [logp for group in logps_by_group(model, PROMPTS, RESPONSES, packing=False) for logp in group]
    assert by_group == pytest.approx(expected, abs=1e-3)


@kinds
def test_gradients_are_those_of_rows_alone(kind: str):
    model, expected = build(kind), build(kind)
    padded_logps(model, PROMPTS, RESPONSES).sum().backward()
    for prompt, group in zip(PROMPTS, RESPONSES, strict=True):
        for response in group:
            fresh = build(kind)
            fresh.load_state_dict(expected.state_dict())
            padded_logps(fresh, [prompt], [[response]]).sum().backward()
            for theirs, ours in zip(expected.parameters(), fresh.parameters(), strict=True):
                theirs.grad = ours.grad if theirs.grad is None else theirs.grad + ours.grad
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert (found.grad - wanted.grad).norm() <= 1e-3 * wanted.grad.norm() + 1e-6


@kinds
def test_packed_up_to_the_switch_and_no_further(kind: str):
    model = build(kind)
    short = [PROMPTS[0], PROMPTS[1][:34]], [RESPONSES[0], [text(30, 20), text(20, 21)]]
    assert choose_packing(True, model, Needs(SWITCH)) is True
    expected = [alone(kind, p, r) for p, group in zip(*short, strict=True) for r in group]
    assert reference_logps(model, *short, packing=True) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(InputError, match=rf"beyond {SWITCH} tokens.*fix: set `packing: false`"):
        reference_logps(model, PROMPTS, RESPONSES, packing=True)
    for longest in (SWITCH + 1, None):
        with pytest.raises(InputError, match="cannot read packed rows: its rotary frequencies"):
            choose_packing(True, model, Needs(longest))
        assert choose_packing("auto", model, Needs(longest)) is False


@kinds
def test_packed_after_longer_rows(kind: str):
    """`dynamic` keeps the frequencies of the longest row so far; a packed row starts from the model's own."""
    model = build(kind)
    choose_packing(True, model, Needs(SWITCH))
    with torch.no_grad():
        padded_logps(model, PROMPTS, RESPONSES)
    group = [text(44, 30)], [[text(20, 31)]]  # 63 tokens are read: `dynamic` would reset below 64 only
    assert reference_logps(model, *group, packing=True) == pytest.approx(
        [alone(kind, group[0][0], group[1][0][0])], abs=1e-3
    )


@kinds
def test_answers_do_not_depend_on_the_batch(kind: str):
    """Nearly greedy answers of prompts that grow across the switch, beside others and alone."""
    tokenizer = type("Pad", (), {"pad_token_id": 0})()
    prompts = [text(n, 40 + n) for n in (10, 55, 60, 60, 70, 90)]

    def answers(asked: list[list[int]], model: PreTrainedModel) -> list[list[int]]:
        settings = SamplingSettings([2], max_new_tokens=16, temperature=1e-4)
        return [answer.ids for (answer,) in generate(model, tokenizer, asked, settings, packing=False)]

    together = answers(prompts, build(kind))
    assert together == [answers([prompt], build(kind))[0] for prompt in prompts]


def test_rows_that_share_a_pass():
    assert read_together([5, 64, 65, 7, 90, 65], 64) == [[0, 1, 3], [2, 5], [4]]
    assert read_together([5, 64, 65], None) == [[0, 1, 2]]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e4},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4},
    ],
)
def test_most_ropes_are_fixed(rope: dict):
    assert fixed_up_to(transformers.LlamaConfig(**SMALL, rope_parameters=rope)) is None


def test_a_rope_for_each_type_of_layer():
    ropes = {"full_attention": DYNAMIC, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    config = transformers.Gemma3TextConfig(**SMALL, max_position_embeddings=SWITCH, rope_parameters=ropes)
    assert fixed_up_to(config) == SWITCH
