"""Packed log-probs against padded ones, for every kind of model; refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from modpo.base.errors import InputError
from modpo.forward import attention
from modpo.forward.attention import packed_attention
from modpo.forward.frozen import reference_logps
from modpo.forward.logprobs import (
    attach_packed_forward,
    detach_packed_forward,
    packed_logps,
    padded_logps,
)
from modpo.forward.packability import require_packable
from modpo.forward.packing import pack
from tests.forward.architectures import PACKABLE, VOCABULARY, build

TOLERANCE = 5e-4  # nats, summed over a response, in float32
PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [5], [20, 21, 22]]
RESPONSES = [
    [[30, 31, 32, 33, 34, 35, 36, 37], [40, 2], [41]],  # a response of one token reads nothing
    [[7]],  # a prompt of one token
    [[7, 7, 7, 2], [8, 9, 10, 11, 12, 2]],
]

REFUSED: dict[str, tuple[dict, str]] = {
    "Mistral": ({"num_key_value_heads": 2}, "its attention slides over a window of 4096 tokens"),
    "Gemma2": ({"num_key_value_heads": 2, "head_dim": 8}, "it has layers of type sliding_attention"),
    "Granite": ({"logits_scaling": 4.0}, "it scales or caps the logits behind its head"),
    "NanoChat": (
        {"num_key_value_heads": 2},
        "it scales or caps the logits behind its head",
    ),  # by less than rounding, here
    "Bloom": ({"n_layer": 2, "n_head": 4}, "its attention does not go through transformers' AttentionInterface"),
    "Doge": ({}, "packed attention does not know attention_mask"),  # masks by content
}


def with_lora(model: PreTrainedModel) -> nn.Module:
    """All linear layers adapted, and both factors moved off their start, where B is 0."""
    torch.manual_seed(2)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    return adapted


def causal_lm(model: nn.Module) -> PreTrainedModel:
    return model if isinstance(model, PreTrainedModel) else model.get_base_model()


def packed(model: nn.Module, prompts=PROMPTS, responses=RESPONSES, *, backward: bool = False) -> Tensor:
    attach_packed_forward(causal_lm(model))
    with packed_attention(causal_lm(model)):
        logps = packed_logps(model, pack(prompts, responses))
        if backward:
            logps.backward(slopes(logps))
    return logps


def slopes(logps: Tensor) -> Tensor:
    """What comes from above in the backward pass: other for each response, of both signs."""
    return torch.linspace(-1, 1.3, len(logps)).to(logps.dtype)


def gradients(model: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    model.zero_grad()
    run()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-3) -> None:
    """Relative, by tensor. A tensor whose gradient is a sum that cancels is compared to the largest one."""
    assert found.keys() == expected.keys()
    assert expected
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        off = (found[name] - gradient).norm() / (gradient.norm() + 1e-3 * largest)
        assert off < tolerance, f"{name}: {off:.1e}"


def compare(model: nn.Module) -> None:
    """Values and gradients of all trainable weights, packed against padded."""
    expected = padded_logps(model, PROMPTS, RESPONSES)
    found = packed(model)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    slow = gradients(model, lambda: padded_logps(model, PROMPTS, RESPONSES).backward(slopes(expected)))
    fast = gradients(model, lambda: packed(model, backward=True))
    assert_same_gradients(fast, slow)


@pytest.mark.parametrize("name", PACKABLE)
def test_packed_equals_padded_with_all_weights_trained(name: str):
    model = build(name, **PACKABLE[name])
    require_packable(model)
    compare(model)


@pytest.mark.parametrize("name", PACKABLE)
def test_packed_equals_padded_with_lora(name: str):
    compare(with_lora(build(name, **PACKABLE[name])))


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_the_comparison_would_notice(name: str):
    """The oracle moves far more than the tolerance when something changes that only attention or positions carry."""
    model = build(name, **PACKABLE[name])
    with torch.no_grad():
        before = padded_logps(model, PROMPTS, RESPONSES)
        other_start = [[prompt[0] + 1, *prompt[1:]] for prompt in PROMPTS]
        assert (padded_logps(model, other_start, RESPONSES) - before).abs().min() > 20 * TOLERANCE
        swapped = [[PROMPTS[0][1], PROMPTS[0][0], *PROMPTS[0][2:]], *PROMPTS[1:]]
        assert (padded_logps(model, swapped, RESPONSES) - before)[:3].abs().min() > 20 * TOLERANCE


def test_padded_by_hand():
    """Each response's tokens, one at a time: log softmax of the last logits at the next token, added up."""
    model = build("Llama")
    expected = []
    with torch.no_grad():
        for prompt, responses in zip(PROMPTS, RESPONSES, strict=True):
            for response in responses:
                total = 0.0
                for i, token in enumerate(response):
                    logits = model(input_ids=torch.tensor([prompt + response[:i]])).logits[0, -1]
                    total += logits.log_softmax(0)[token].item()
                expected.append(total)
        found = padded_logps(model, PROMPTS, RESPONSES)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_embeddings(tied: bool):
    """A tied head's gradient joins the embedding's."""
    model = build("Llama", tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    compare(model)


def test_frozen_head_among_trained_weights():
    model = build("Llama", tie_word_embeddings=False)
    model.lm_head.weight.requires_grad_(False)
    compare(model)


@pytest.mark.parametrize("trained", [["lm_head.bias"], ["lm_head.weight"], ["lm_head.weight", "lm_head.bias"]])
def test_parts_of_the_head_trained_alone(trained: list[str]):
    model = build("Phi")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    compare(model)


def test_whole_head_saved_beside_lora():
    """PEFT's `modules_to_save` wraps the head: the trained copy is read, not the original."""
    torch.manual_seed(2)
    model = get_peft_model(build("Llama"), LoraConfig(task_type="CAUSAL_LM", r=2, modules_to_save=["lm_head"]))
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    compare(model)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_trained_in_the_head(tied: bool):
    """PEFT's `trainable_token_indices`: rows of a tied head move with the embedding's; an untied head has its own."""
    torch.manual_seed(2)
    tokens = [7, 30, 41]
    named = tokens if tied else {"embed_tokens": tokens, "lm_head": tokens}
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], trainable_token_indices=named)
    model = get_peft_model(build("Llama", tie_word_embeddings=tied), config)
    before = padded_logps(model, PROMPTS, RESPONSES)
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    require_packable(model)
    assert (padded_logps(model, PROMPTS, RESPONSES) - before).abs().max() > 100 * TOLERANCE
    compare(model)
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(packed(model), before, rtol=0, atol=TOLERANCE)


def test_head_with_adapters():
    """LoRA on the head adds to its logits."""
    torch.manual_seed(2)
    model = get_peft_model(build("Llama"), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["lm_head", "q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    require_packable(model)
    compare(model)


def test_head_with_a_hook():
    """What is hung on the head by others has its effect."""
    model = build("Llama")
    model.lm_head.register_forward_hook(lambda module, args, output: output * 0.5)
    compare(model)


@pytest.mark.parametrize("lora", [True, False], ids=["LoRA", "all weights"])
def test_gradient_checkpointing(lora: bool):
    """Layers run again in the backward pass, so packed attention must still be in force there."""
    plain = build("Llama")
    model = with_lora(plain) if lora else plain
    model.train()
    expected = gradients(model, lambda: packed(model, backward=True))
    causal_lm(model).gradient_checkpointing_enable({"use_reentrant": False})
    if lora:
        model.enable_input_require_grads()
    found = gradients(model, lambda: packed(model, backward=True))
    assert_same_gradients(found, expected, tolerance=1e-5)


def test_groups_larger_than_a_block():
    """A prompt of 300 tokens and a response of 270 cross the blocks of 256 rows."""
    model = build("Llama", num_key_value_heads=1)
    generator = torch.Generator().manual_seed(4)
    draw = lambda n: torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()  # noqa: E731
    prompts, responses = [draw(300), draw(2)], [[draw(270), draw(3)], [draw(5)]]
    with torch.no_grad():
        expected = padded_logps(model, prompts, responses)
        found = packed(model, prompts, responses)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_bfloat16():
    """Both paths round; log-probs are float32 and as close to the float32 model's as rounding lets them be."""
    exact = build("Llama")
    model = copy.deepcopy(exact).bfloat16()
    require_packable(model)
    with torch.no_grad():
        truth = padded_logps(exact, PROMPTS, RESPONSES)
        plain, fast = padded_logps(model, PROMPTS, RESPONSES), packed(model)
    assert plain.dtype == fast.dtype == torch.float32
    assert ((fast - truth).abs() <= 0.02 * truth.abs() + 0.2).all()
    assert (fast - truth).norm() <= 2 * (plain - truth).norm() + 0.1


def test_float64():
    model = build("Llama").double()
    with torch.no_grad():
        torch.testing.assert_close(packed(model), padded_logps(model, PROMPTS, RESPONSES), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["Llama", "Phi"])
def test_under_autocast(name: str):
    """Mixed precision: float32 weights, bfloat16 products, in the head and its bias too."""
    model = build(name)
    exact = padded_logps(model, PROMPTS, RESPONSES)
    expected = gradients(model, lambda: padded_logps(model, PROMPTS, RESPONSES).backward(slopes(exact)))

    def run() -> None:
        attach_packed_forward(model)
        with packed_attention(model):
            with torch.autocast("cpu", torch.bfloat16):
                logps = packed_logps(model, pack(PROMPTS, RESPONSES))
            assert logps.dtype == torch.float32
            assert ((logps - exact).abs() <= 0.02 * exact.abs() + 0.2).all()
            logps.backward(slopes(logps))

    found = gradients(model, run)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert_same_gradients(found, expected, tolerance=0.15)


# --- what the model is afterwards --------------------------------------------------------------------------------


def test_other_calls_of_the_model_stay_as_they_were():
    model = build("Llama")
    ids = torch.tensor([[3, 4, 5]])
    before = model(input_ids=ids, labels=ids)
    attach_packed_forward(model)
    attached = model.forward
    attach_packed_forward(model)
    assert model.forward is attached
    after = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=0)
    torch.testing.assert_close(after.loss, before.loss, rtol=0, atol=0)
    detach_packed_forward(model)
    assert "forward" not in vars(model)
    with pytest.raises(ValueError, match="input_ids"):
        model(packed_row=pack(PROMPTS, RESPONSES))


@pytest.mark.parametrize("name", ["Llama", "GPT2"])
def test_generation_from_padded_prompts_stays_as_it_was(name: str):
    """`generate` looks at the forward's signature to know whether padded prompts need positions of their own."""
    model = build(name, **PACKABLE[name])
    ids = torch.tensor([[0] * 8 + [5, 6, 7], list(range(9, 20))])

    def answers() -> Tensor:
        return model.generate(input_ids=ids, attention_mask=(ids != 0).long(), max_new_tokens=12, do_sample=False)

    before = answers()
    require_packable(model)
    assert torch.equal(answers(), before)


# --- reference log-probs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [True, False], ids=["LoRA", "bare"])
@pytest.mark.parametrize("packing", [True, False])
def test_reference_logps(packing: bool, lora: bool):
    """As they are when the model is read, adapters included."""
    model = with_lora(build("Llama")) if lora else build("Llama")
    found = reference_logps(model, PROMPTS, RESPONSES, packing=packing)
    assert found == pytest.approx(padded_logps(model, PROMPTS, RESPONSES).tolist(), abs=TOLERANCE)


@pytest.mark.parametrize("packing", [True, False])
def test_reference_logps_know_no_dropout(packing: bool):
    """A model fresh from training mode gives the log-probs of evaluation mode, and is left as it was."""
    model = build("GPT2", **PACKABLE["GPT2"], resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    expected = padded_logps(model, PROMPTS, RESPONSES).tolist()
    model.train()
    assert padded_logps(model, PROMPTS, RESPONSES).tolist() != pytest.approx(expected, abs=0.1)
    assert reference_logps(model, PROMPTS, RESPONSES, packing=packing) == pytest.approx(expected, abs=TOLERANCE)
    assert model.training


# --- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", REFUSED)
def test_refuses_models_that_it_would_read_wrongly(name: str, dtype: torch.dtype):
    settings, reason = REFUSED[name]
    with pytest.raises(InputError) as caught:
        require_packable(build(name, **settings).to(dtype))
    line = str(caught.value)
    assert "\n" not in line
    assert reason in line
    assert line.count("fix:") == 1
    assert line.endswith("fix: set `packing: false`")


@pytest.mark.parametrize("name", REFUSED)
def test_refused_models_are_read_padded(name: str):
    """The way out works: `packing: false` reads them as they are, and the refusal leaves no trace."""
    settings, _ = REFUSED[name]
    model = build(name, **settings)
    expected = padded_logps(model, PROMPTS, RESPONSES).tolist()
    with pytest.raises(InputError):
        reference_logps(model, PROMPTS, RESPONSES, packing=True)
    assert model.config._attn_implementation != attention.IMPLEMENTATION
    # Attention over a sliding window may read a batch of other widths in another order: equal up to rounding.
    assert reference_logps(model, PROMPTS, RESPONSES, packing=False) == pytest.approx(expected, rel=1e-4)


def test_mistral_without_its_window_is_packable():
    require_packable(build("Mistral", num_key_value_heads=2, sliding_window=None))


def test_qwen2_with_its_window_switched_off_is_packable():
    """Its configuration always names a window; `use_sliding_window` says whether it is in force."""
    model = build("Qwen2", num_key_value_heads=2, sliding_window=4, use_sliding_window=False)
    require_packable(model)
    compare(model)


@pytest.fixture
def _broken_attention() -> Iterator[None]:
    """Packed attention that mixes the responses of a prompt: as if a model ignored the layout."""

    def wrong(module, query, key, value, attention_mask, scaling=None, packed=None, **kwargs):
        return nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        ).transpose(1, 2), None

    transformers.AttentionInterface.register(attention.IMPLEMENTATION, wrong)
    yield
    transformers.AttentionInterface.register(attention.IMPLEMENTATION, attention.packed_attention_forward)


@pytest.mark.usefixtures("_broken_attention")
def test_the_probe_finds_wrong_log_probs():
    with pytest.raises(InputError, match=r"its log-probs come out .*% off; fix: set `packing: false`"):
        require_packable(build("Llama"))
