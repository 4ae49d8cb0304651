"""Answers made beside one another, against each made alone by a plain forward pass for every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from modpo.base.errors import InputError, NumericError
from modpo.forward import decoding
from modpo.forward.decode_attention import BLOCK
from modpo.forward.generate import generate
from modpo.forward.logprobs import padded_logps
from modpo.forward.sampled import SampledAnswer, SamplingSettings
from modpo.forward.sampling import sample_tokens, uniforms
from tests.forward.architectures import PACKABLE, VOCABULARY, build

NOT_IN_FLOAT64 = {"DeepseekV2", "DeepseekV3"}  # torch has no grouped products of experts in it
PROMPTS = [[3, 4, 5, 6, 7, 8], [9], list(range(3, 43)), [10, 11], [12, 13, 14], [15] * 7]
SETTINGS = SamplingSettings(ends=[2, 3], max_new_tokens=BLOCK + 9, answers_per_prompt=3, seed=5)


def policy(kind: str = "Llama", dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    return build(kind, **PACKABLE[kind]).to(dtype)


def answers_of(
    model: nn.Module, settings: SamplingSettings = SETTINGS, batch_size: int = 7
) -> list[list[SampledAnswer]]:
    return generate(model, None, PROMPTS, settings, packing=True, batch_size=batch_size)


@torch.no_grad()
def made_alone(model: nn.Module, settings: SamplingSettings = SETTINGS) -> list[list[list[int]]]:
    """The slow truth: each answer by itself, the whole text read anew for every token."""

    def answer(prompt: Sequence[int], at: Iterator[float]) -> list[int]:
        ids: list[int] = []
        while len(ids) < settings.max_new_tokens and (not ids or ids[-1] not in settings.ends):
            logits = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, -1]
            up_to = (logits / settings.temperature).softmax(-1).cumsum(-1)
            ids.append(int(torch.searchsorted(up_to, next(at) * up_to[-1], right=True)))
        return ids

    n = settings.answers_per_prompt
    return [[answer(p, iter(uniforms(settings, i, j).tolist())) for j in range(n)] for i, p in enumerate(PROMPTS)]


@pytest.mark.parametrize("kind", PACKABLE)
def test_answers_and_log_probs_are_those_of_plain_passes(kind: str) -> None:
    model = policy(kind, torch.float32 if kind in NOT_IN_FLOAT64 else torch.float64)
    found = answers_of(model)
    ids = [[answer.ids for answer in group] for group in found]
    assert ids == made_alone(model)
    lengths = {len(answer) for group in ids for answer in group}
    assert max(lengths) > BLOCK + 1  # beyond a block of the cache
    assert min(lengths) < 10  # and some end early
    with torch.no_grad():
        expected = padded_logps(model, PROMPTS, ids).tolist()
    tolerance = 1e-3 if kind in NOT_IN_FLOAT64 else 1e-8
    assert [answer.logp for group in found for answer in group] == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_log_probs_are_the_policy_s_own_at_any_temperature(temperature: float) -> None:
    model, settings = policy(), SamplingSettings([2], 12, 2, temperature)
    found = answers_of(model, settings)
    ids = [[answer.ids for answer in group] for group in found]
    assert ids == made_alone(model, settings)
    with torch.no_grad():
        expected = padded_logps(model, PROMPTS, ids).tolist()
    assert [answer.logp for group in found for answer in group] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 1000])
def test_what_shares_a_batch_changes_no_answer(batch_size: int) -> None:
    model = policy()
    assert [[a.ids for a in g] for g in answers_of(model, batch_size=batch_size)] == made_alone(model)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_a_batch_holds_no_more_answers_than_asked(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one prompt: memory is what the batch size is for."""
    seen: list[int] = []

    def watched(logits: torch.Tensor, *more: object) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(logits))
        return sample_tokens(logits, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "sample_tokens", watched)
    answers_of(policy(), batch_size=batch_size)
    assert max(seen) == batch_size


def test_prompts_are_read_in_passes_of_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "TOKENS_PER_FORWARD", 10)
    model = policy()
    assert [[a.ids for a in g] for g in answers_of(model, batch_size=100)] == made_alone(model)


def test_a_policy_with_an_adapter_beside_its_base() -> None:
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(policy(), config).double().eval()
    found = [[a.ids for a in g] for g in answers_of(model)]
    assert found == made_alone(model)
    with model.disable_adapter():
        assert found != made_alone(model)


def test_the_first_token_s_frequencies_are_transformers_own() -> None:
    """Against `generate` of transformers, two samples of one distribution."""
    model, n = policy(dtype=torch.float32), 4000
    (found,) = generate(model, None, [PROMPTS[0]], SamplingSettings([2], 1, n), packing=True, batch_size=n)
    torch.manual_seed(0)
    plain = model.generate(
        torch.tensor([PROMPTS[0]]), do_sample=True, top_k=0, max_new_tokens=1, num_return_sequences=n, pad_token_id=0
    )
    mine = torch.tensor([answer.ids[0] for answer in found]).bincount(minlength=VOCABULARY) / n
    theirs = plain[:, -1].bincount(minlength=VOCABULARY) / n
    probs = (mine + theirs) / 2
    assert ((mine - theirs).abs() <= 5 * (2 * probs * (1 - probs) / n).sqrt() + 1e-9).all()


def test_the_model_is_left_as_it_was() -> None:
    model = policy()
    before = model.config._attn_implementation
    answers_of(model)
    assert model.config._attn_implementation == before
    model.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(NumericError, match="not finite"):
        answers_of(model)
    assert model.config._attn_implementation == before


def test_a_model_that_calls_a_layer_twice_is_refused() -> None:
    model = policy()
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(InputError, match="calls one attention layer twice in a pass; fix: set `packing: false`"):
        answers_of(model)
