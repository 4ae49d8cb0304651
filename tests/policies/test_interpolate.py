"""Between points: coefficients in closed form; decoding against full forward passes of every policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from modpo.base.errors import InputError
from modpo.base.simplex import Weights, lattice
from modpo.policies.interpolate import LogitInterpolation, coefficients, hull_problem

PAD, END = 2, 0
PROMPTS = [[5, 6, 7, 8, 9], [40, 41], [100, 101, 102]]


def vector(*weights: float) -> Weights:
    return dict(zip("abcd", weights, strict=False))


# --- coefficients ---------------------------------------------------------------------------------------------


def test_a_vector_that_is_there_is_taken_alone():
    points = [vector(0.9, 0.1), vector(0.5, 0.5), vector(0.1, 0.9)]
    for n, point in enumerate(points):
        assert coefficients(points, point) == pytest.approx([float(n == i) for i in range(3)])


def test_between_two_neighbours():
    """The nearest points on both sides, not the ends."""
    points = [vector(x, 1 - x) for x in (0.9, 0.7, 0.5, 0.3, 0.1)]
    assert coefficients(points, vector(0.6, 0.4)) == pytest.approx([0, 0.5, 0.5, 0, 0])
    assert coefficients(points, vector(0.34, 0.66)) == pytest.approx([0, 0, 0.2, 0.8, 0])
    assert coefficients(points[::-1], vector(0.34, 0.66)) == pytest.approx([0, 0.8, 0.2, 0, 0])


def test_of_a_triangle_they_are_barycentric():
    corners = [vector(1, 0, 0), vector(0, 1, 0), vector(0, 0, 1)]
    assert coefficients(corners, vector(0.2, 0.3, 0.5)) == pytest.approx([0.2, 0.3, 0.5])
    points = [vector(0.8, 0.1, 0.1), vector(0.1, 0.8, 0.1), vector(0.2, 0.2, 0.6)]
    matrix = np.array([[point[name] for point in points] for name in "abc"])
    expected = np.linalg.solve(matrix, [0.4, 0.3, 0.3])
    assert (expected > 0).all()
    assert coefficients(points, vector(0.4, 0.3, 0.3)) == pytest.approx(expected.tolist())


@pytest.mark.parametrize("target", [(0.95, 0.05), (0.0, 1.0)])
def test_outside_the_points(target: tuple[float, float]):
    assert coefficients([vector(0.9, 0.1), vector(0.1, 0.9)], vector(*target)) is None


def test_outside_in_the_plane():
    points = [vector(0.8, 0.1, 0.1), vector(0.1, 0.8, 0.1), vector(0.1, 0.1, 0.8)]
    assert coefficients(points, vector(0.5, 0.45, 0.05)) is None
    assert coefficients(points, vector(0.45, 0.45, 0.1)) == pytest.approx([0.5, 0.5, 0], abs=1e-9)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_many_points_few_coefficients(objectives: int):
    """Anywhere: at most K, at least 0, of sum 1, that give the vector back, and from near: the triangles are small."""
    points = lattice(list("abcd"[:objectives]), 5)
    rng = np.random.default_rng(0)
    for _ in range(25):
        target = dict(zip(points[0], rng.dirichlet(np.ones(objectives)).tolist(), strict=True))
        found = coefficients(points, target)
        assert found is not None
        assert min(found) >= 0
        assert sum(found) == pytest.approx(1)
        used = [(c, p) for c, p in zip(found, points, strict=True) if c > 0]
        assert len(used) <= objectives
        for name, weight in target.items():
            assert sum(c * p[name] for c, p in used) == pytest.approx(weight, abs=1e-7)
        assert all(abs(p[name] - target[name]) <= 0.4 + 1e-9 for _, p in used for name in target)  # two steps of 0.2


def test_what_the_points_span():
    assert hull_problem({"p": vector(0.9, 0.1), "q": vector(0.25, 0.75)}) == "a 0.25 to 0.9, b 0.1 to 0.75"


# --- decoding -------------------------------------------------------------------------------------------------


def with_adapters(base: Any) -> PeftModel:
    """Three adapters, of which `one` is active."""
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    model = get_peft_model(base, lora, adapter_name="one")
    for name in ("two", "three"):
        model.add_adapter(name, lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.12)
    return model.eval()


@pytest.fixture(scope="module")
def policies(tiny_model: Path) -> PeftModel:
    return with_adapters(AutoModelForCausalLM.from_pretrained(tiny_model))


def padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Prompts side by side, padded on the left, and their attention mask."""
    width = max(map(len, prompts))
    rows = [[PAD] * (width - len(p)) + p for p in prompts]
    return torch.tensor(rows), torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


@torch.no_grad()
def oracle(model: PeftModel, shares: dict[str, float], prompt: list[int], tokens: int) -> list[int]:
    """Greedy decoding of one prompt without padding or caches: every policy reads everything again for each token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + tokens:
        mixed = 0
        for name, share in shares.items():
            if name == "__base__":
                with model.disable_adapter():
                    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            else:
                model.set_adapter(name, inference_mode=True)
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            mixed = mixed + share * logits[0, -1].log_softmax(-1)
        ids.append(int(mixed.argmax()))
        if ids[-1] == END:
            break
    model.set_adapter("one", inference_mode=True)
    return ids[len(prompt) :]


def decode(model: PeftModel, shares: dict[str, float] | None, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    input_ids, mask = padded(prompts)
    processors = [LogitInterpolation.of_adapters(model, shares, mask)] if shares else None
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": tokens, "pad_token_id": PAD, "eos_token_id": END}
    out = model.generate(input_ids=input_ids, attention_mask=mask, logits_processor=processors, **settings)
    answers = out[:, input_ids.shape[1] :].tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in answers]


@pytest.mark.parametrize(
    "shares",
    [
        {"one": 0.5, "two": 0.5},
        {"one": 0.2, "two": 0.5, "three": 0.3},
        {"one": 0.6, "__base__": 0.4},
        {"one": 0.0, "three": 1.0},
    ],
    ids=str,
)
def test_decoding_between_policies_against_full_forward_passes(policies: PeftModel, shares: dict[str, float]):
    """A batch padded on the left, with caches, token for token."""
    expected = [oracle(policies, shares, prompt, 12) for prompt in PROMPTS]
    assert decode(policies, shares, PROMPTS, 12) == expected
    assert expected != decode(policies, None, PROMPTS, 12)  # the generating policy alone says something else


def test_a_model_with_positions_that_are_learned():
    """Unlike rotary ones, they tell how many positions the padding takes: GPT-2, of random numbers."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=259, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    config.bos_token_id = config.eos_token_id = END
    model, shares = with_adapters(GPT2LMHeadModel(config)), {"one": 0.4, "two": 0.6}
    assert decode(model, shares, PROMPTS, 12) == [oracle(model, shares, prompt, 12) for prompt in PROMPTS]


def test_a_policy_taken_whole_is_itself(policies: PeftModel):
    assert decode(policies, {"one": 1.0, "two": 0.0}, PROMPTS, 12) == decode(policies, None, PROMPTS, 12)


def test_the_generating_adapter_stays_as_it_is(policies: PeftModel):
    policies.set_adapter("one")
    before = {name: p.requires_grad for name, p in policies.named_parameters()}
    assert any(before.values())
    decode(policies, {"one": 0.5, "two": 0.5}, PROMPTS, 3)
    assert policies.active_adapters == ["one"]
    assert {name: p.requires_grad for name, p in policies.named_parameters()} == before


def test_scores_are_mixed_log_probs(policies: PeftModel):
    """One step by hand: the new numbers are the weighted sum of three log-softmaxes, whatever is added to logits."""
    input_ids, _ = padded(PROMPTS)
    seen: list[tuple[float, ...]] = []

    def constant(logits: Tensor) -> Any:
        def read(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
            seen.append((*ids.shape, cache or 0))
            return logits, (cache or 0) + ids.shape[1]

        return read

    own, others = torch.randn(3, 7), [torch.randn(3, 7), torch.randn(3, 7)]
    processor = LogitInterpolation(0.5, [(0.2, constant(others[0])), (0.3, constant(others[1] + 100))])
    mixed = processor(input_ids, own)
    expected = 0.5 * own.log_softmax(-1) + 0.2 * others[0].log_softmax(-1) + 0.3 * others[1].log_softmax(-1)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)
    processor(torch.cat([input_ids, torch.ones(3, 1, dtype=torch.long)], dim=1), own)
    assert seen == [(3, 5, 0), (3, 5, 0), (3, 1, 5), (3, 1, 5)]  # the new token alone, with the cache of its policy


def test_one_interpolation_is_for_one_generation(policies: PeftModel):
    input_ids, mask = padded(PROMPTS)
    processor = LogitInterpolation.of_adapters(policies, {"one": 0.5, "two": 0.5}, mask)
    scores = torch.zeros(3, 259)
    processor(input_ids, scores)
    for other in (input_ids, torch.cat([input_ids + 1, input_ids], dim=1), torch.cat([input_ids] * 2)):
        with pytest.raises(ValueError, match="one call of generate, without beams"):
            processor(other, scores)


def test_adapters_that_cannot_be_interpolated(policies: PeftModel):
    with pytest.raises(InputError, match="four: no such adapter; fix: use some of: __base__, one, three, two"):
        LogitInterpolation.of_adapters(policies, {"one": 0.5, "four": 0.5})
    with pytest.raises(InputError, match="one active; fix: call `set_adapter`"):
        LogitInterpolation.of_adapters(policies, {"two": 0.5, "three": 0.5})
