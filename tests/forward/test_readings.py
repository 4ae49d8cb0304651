"""What a pass says of responses: packed against padded, and both against sums of plain softmaxes."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from modpo.forward.attention import packed_attention
from modpo.forward.logprobs import attach_packed_forward, packed_logps, padded_logps
from modpo.forward.packing import pack
from modpo.forward.readings import ResponseReadings, packed_readings, padded_readings

PROMPTS = [[3, 4, 5, 6], [5]]
RESPONSES = [[[30, 31, 32, 33, 34], [41]], [[7, 7, 2]]]


def build(name: str) -> PreTrainedModel:
    """A random model of 2 layers with large weights; Phi's head has a bias."""
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**sizes, num_attention_heads=4))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.float().eval()


def by_hand(model: PreTrainedModel) -> list[list[float]]:
    """Of each response alone: its log-prob, its length, sums of entropies and mean logits, tokens that are argmax."""
    rows = []
    for prompt, response in [(p, r) for p, group in zip(PROMPTS, RESPONSES, strict=True) for r in group]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        probs = logits.softmax(-1)
        logp = sum(probs[i, token].log().item() for i, token in enumerate(response))
        entropy = -(probs * probs.log()).sum().item()
        top = sum(int(logits[i].argmax()) == token for i, token in enumerate(response))
        rows.append([logp, len(response), entropy, logits.mean(-1).sum().item(), top])
    return rows


def in_rows(found: ResponseReadings) -> list[list[float]]:
    return torch.stack(list(found), dim=1).tolist()


@pytest.mark.parametrize("name", ["Llama", "Phi"])
def test_both_ways_are_as_by_hand(name: str):
    model = build(name)
    expected = by_hand(model)
    padded = padded_readings(model, PROMPTS, RESPONSES)
    assert torch.equal(padded.logps, padded_logps(model, PROMPTS, RESPONSES))
    attach_packed_forward(model)
    row = pack(PROMPTS, RESPONSES)
    with packed_attention(model):
        packed = packed_readings(model, row)
        assert torch.equal(packed.logps, packed_logps(model, row))
    for found in (padded, packed):
        assert [value.requires_grad for value in found] == [True, False, False, False, False]
        for numbers, wanted in zip(in_rows(found), expected, strict=True):
            assert numbers == pytest.approx(wanted, abs=1e-4)
