"""What a model that cannot read packed rows is told, and that it is padded where that is left open."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel

from modpo.base.errors import InputError
from modpo.base.progress import say_once
from modpo.forward.frozen import reference_logps
from modpo.forward.logprobs import padded_logps
from modpo.forward.packability import choose_packing, packing_obstacle
from modpo.forward.packing_needs import Needs

SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [5]]
RESPONSES = [[[30, 31, 32, 33], [41]], [[7, 8, 9, 10, 11]]]
VIRTUAL: dict[str, Callable[[], PeftConfig]] = {
    "PROMPT_TUNING": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "PREFIX_TUNING": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "P_TUNING": lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
}


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).eval()


def mistral() -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(MistralConfig(**SMALL, sliding_window=8)).eval()


def with_virtual_tokens(kind: str) -> nn.Module:
    """Virtual tokens of random numbers, large enough to matter."""
    torch.manual_seed(1)
    model = get_peft_model(llama(), VIRTUAL[kind]())
    for parameter in model.prompt_encoder.parameters():
        parameter.data = torch.randn(parameter.shape)
    return model.eval()


@pytest.fixture(autouse=True)
def _nothing_said_before() -> None:
    say_once.cache_clear()


def test_padded_is_said_once_with_its_reason(capsys: pytest.CaptureFixture[str]):
    assert choose_packing("auto", mistral(), Needs(100)) is False
    assert choose_packing("auto", mistral(), Needs(100)) is False
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "packing: rows are padded, since the model cannot read packed ones: "
        "its attention slides over a window of 8 tokens"
    ]


def test_packed_where_possible(capsys: pytest.CaptureFixture[str]):
    assert choose_packing("auto", llama(), Needs(100)) is True
    assert choose_packing(True, llama(), Needs(100)) is True
    assert choose_packing(False, llama(), Needs(100)) is False
    assert choose_packing(False, mistral(), Needs(100)) is False
    assert not capsys.readouterr().err


def test_true_refuses():
    with pytest.raises(
        InputError, match=r"\(mistral\):packing: cannot read packed rows: .*; fix: set `packing: false`"
    ):
        choose_packing(True, mistral(), Needs(100))


@pytest.mark.parametrize("error", [RuntimeError, AttributeError, IndexError, NotImplementedError])
def test_whatever_the_first_packed_row_raises_is_a_reason(error: type[Exception], monkeypatch: pytest.MonkeyPatch):
    def fails(*args: object) -> None:
        raise error("the expanded size must match\nand more")

    monkeypatch.setattr("modpo.forward.attention.BlockAttention.apply", fails)
    model = llama()
    assert packing_obstacle(model) == "the expanded size must match"
    assert choose_packing("auto", model, Needs(100)) is False
    assert "forward" not in vars(model)


def test_running_out_of_memory_is_none(monkeypatch: pytest.MonkeyPatch):
    def fails(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("modpo.forward.attention.BlockAttention.apply", fails)
    with pytest.raises(torch.OutOfMemoryError):
        choose_packing("auto", llama(), Needs(100))


def test_noise_of_the_embeddings_wants_whole_rows():
    assert choose_packing("auto", llama(), Needs(100, neftune=5.0)) is False
    with pytest.raises(InputError, match="neftune_noise_alpha"):
        choose_packing(True, llama(), Needs(100, neftune=5.0))


@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_are_known_before_and_after_they_are_there(kind: str):
    reason = rf"its adapter \({kind}\) puts tokens of its own before every row"
    for model, needs in ((llama(), Needs(100, adapters=(VIRTUAL[kind](),))), (with_virtual_tokens(kind), Needs(100))):
        with pytest.raises(InputError, match=reason):
            choose_packing(True, model, needs)
        assert choose_packing("auto", model, needs) is False


@pytest.mark.parametrize("kind", VIRTUAL)
def test_padded_rows_behind_virtual_tokens(kind: str):
    """Equal to PEFT's own loss of one sequence at a time, where only the response has labels."""
    model = with_virtual_tokens(kind)
    expected = []
    with torch.no_grad():
        for prompt, group in zip(PROMPTS, RESPONSES, strict=True):
            for response in group:
                ids = torch.tensor([prompt + response])
                labels = torch.tensor([[-100] * len(prompt) + response])
                loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
                expected.append(-loss.item() * len(response))
        found = padded_logps(model, PROMPTS, RESPONSES).tolist()
        with model.disable_adapter():
            bare = padded_logps(model, PROMPTS, RESPONSES).tolist()
    assert found == pytest.approx(expected, abs=1e-3)
    assert bare == pytest.approx(padded_logps(llama(), PROMPTS, RESPONSES).tolist(), abs=1e-3)
    assert bare != pytest.approx(expected, abs=1e-2)
    assert reference_logps(model, PROMPTS, RESPONSES, packing=False) == pytest.approx(expected, abs=1e-3)


def test_a_model_whose_adapter_was_taken_off_is_read_as_any():
    """PEFT and transformers leave attributes of adapters behind."""
    model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")).unload()
    assert choose_packing(True, model, Needs(100)) is True
    assert len(padded_logps(model, PROMPTS, RESPONSES)) == 3


def test_lora_is_no_obstacle():
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    assert choose_packing("auto", get_peft_model(llama(), config), Needs(100, adapters=(config,))) is True


@pytest.mark.parametrize("attached", [True, False])
def test_adapters_that_look_for_tokens_of_a_row_are_padded(attached: bool):
    """aLoRA acts behind its invocation tokens, of which the probe's rows have none."""
    adapter = LoraConfig(task_type="CAUSAL_LM", r=2, alora_invocation_tokens=[5])
    model = get_peft_model(llama(), adapter) if attached else llama()
    assert choose_packing("auto", model, Needs(64, adapters=() if attached else (adapter,))) is False
    with pytest.raises(InputError, match=r"aLoRA.*fix: set `packing: false`"):
        choose_packing(True, model, Needs(64, adapters=() if attached else (adapter,)))
