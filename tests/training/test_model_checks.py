"""What a model must be to be trained on preferences: found before anything is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, Qwen3MoeConfig, Qwen3MoeForCausalLM

from modpo.base.errors import InputError
from modpo.base.progress import say_once
from modpo.models.adapters import adapts_head, would_adapt_head
from modpo.training.config import MODPOConfig
from modpo.training.trainer import MODPOTrainer
from tests.models.adapters import make_adapter
from tests.training.runs import LORA, log_column, preference_rows


@pytest.fixture
def trainer(tmp_path: Path, plain_descent: dict[str, Any], tiny_model: Path) -> Any:
    def make(model: Any, peft_config: Any = None, **more: Any) -> MODPOTrainer:
        settings = {**plain_descent, "output_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache"), **more}
        return MODPOTrainer(
            model,
            args=MODPOConfig(weights={"quality": 0.5, "short": 0.5}, **settings),
            train_dataset=preference_rows(),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
            peft_config=peft_config,
        )

    return make


def scored(folder: Path) -> bool:
    return (folder / "cache").exists()


def moe(**more: Any) -> Qwen3MoeForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=300, num_key_value_heads=2, **sizes, **experts, **more))


# --- something to train -------------------------------------------------------------------------------------


def test_a_frozen_adapter_is_refused_before_anything_is_scored(trainer: Any, tiny_model: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    frozen = PeftModel.from_pretrained(base, make_adapter(tiny_model, tmp_path / "adapter", 1))
    with pytest.raises(InputError, match=r"nothing would be trained.*is_trainable=True"):
        trainer(frozen)
    assert not scored(tmp_path)


@pytest.mark.parametrize("wrapped", [True, False])
def test_prefix_tuning_is_refused_with_checkpointed_layers(
    wrapped: bool, trainer: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """They run again in the backward pass, and would see the prefix twice."""
    adapter = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    given = (get_peft_model(model, adapter),) if wrapped else (model, adapter)
    with pytest.raises(InputError, match=r"gradient_checkpointing: is True.*prefix tuning; fix: set it to False"):
        trainer(*given, gradient_checkpointing=True)
    assert not scored(tmp_path)
    trainer(*given, gradient_checkpointing=False, max_steps=1).train()


def test_virtual_tokens_take_positions_too(trainer: Any) -> None:
    def gpt2(positions: int) -> Any:
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "eos_token_id": 0, "bos_token_id": 0}
        return AutoModelForCausalLM.from_config(GPT2Config(vocab_size=300, n_positions=positions, **sizes))

    adapter = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=100)
    with pytest.raises(InputError, match=r"model has 10 positions .*`max_length` to 10: the adapter's virtual .* 100"):
        trainer(gpt2(110), adapter)
    trainer(gpt2(200), adapter, max_steps=1).train()


def test_a_frozen_model_is_refused_unless_adapters_are_added(trainer: Any, tiny_model: Path, tmp_path: Path) -> None:
    frozen = AutoModelForCausalLM.from_pretrained(tiny_model).requires_grad_(False)
    with pytest.raises(InputError, match=r"nothing would be trained.*give `peft_config`"):
        trainer(frozen)
    assert not scored(tmp_path)
    assert trainer(frozen, LoraConfig(**LORA)).train().global_step == 3


def test_adapters_for_inference_are_refused(trainer: Any, tiny_model: Path, tmp_path: Path) -> None:
    model, config = AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(**LORA, inference_mode=True)
    with pytest.raises(InputError, match=r"peft_config.inference_mode: is True, so nothing would be trained"):
        trainer(model, config)
    assert not scored(tmp_path)


def test_an_adapter_that_is_frozen_in_part_is_trained_in_part(trainer: Any, tiny_model: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(base, make_adapter(tiny_model, tmp_path / "adapter", 1), is_trainable=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "lora" in name}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "layers.1." in name)
    after = dict(_trained(trainer(model)).model.named_parameters())
    moved = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    assert moved
    assert all("layers.1." in name for name in moved)


def test_a_trainable_adapter_is_trained(trainer: Any, tiny_model: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = PeftModel.from_pretrained(base, make_adapter(tiny_model, tmp_path / "adapter", 1), is_trainable=True)
    assert len(set(log_column(_trained(trainer(model)), "loss"))) == 3


def _trained(trainer: MODPOTrainer) -> MODPOTrainer:
    trainer.train()
    return trainer


# --- the output head ----------------------------------------------------------------------------------------

TARGETS = [
    (["q_proj", "lm_head"], True),
    (["lm_head"], True),
    (".*(q_proj|head)", True),
    ("all-linear", False),
    (["q_proj"], False),
    (None, False),
    (".*layers.*q_proj", False),
]


@pytest.mark.parametrize(("targets", "adapted"), TARGETS)
def test_adapters_on_the_head_are_seen_before_they_are_added(tiny_model: Path, targets: Any, adapted: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(**(LORA | {"target_modules": targets}))
    assert would_adapt_head(model, config) is adapted
    assert adapts_head(get_peft_model(model, config)) is adapted


def test_other_ways_to_the_head(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert would_adapt_head(model, LoraConfig(task_type="CAUSAL_LM", target_parameters=["lm_head.weight"]))
    assert not would_adapt_head(model, LoraConfig(**LORA, modules_to_save=["lm_head"]))
    assert not would_adapt_head(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def test_adapters_on_the_head_are_refused_before_anything_is_scored(
    trainer: Any, tiny_model: Path, tmp_path: Path
) -> None:
    base, config = AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(**LORA | {"target_modules": "lm_head"})
    config.target_modules = {"lm_head"}
    with pytest.raises(InputError, match=r"peft_config.target_modules: puts an adapter on the output head.*take `lm_h"):
        trainer(base, config)
    with pytest.raises(InputError, match="model: puts an adapter on the output head"):
        trainer(get_peft_model(base, config))
    assert not scored(tmp_path)


# --- a mixture of experts -----------------------------------------------------------------------------------


def test_a_mixture_of_experts_is_trained_without_the_routers_loss_which_is_said_once(
    trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    say_once.cache_clear()
    by_default = _trained(trainer(moe(), LoraConfig(**LORA)))
    again = _trained(trainer(moe(), LoraConfig(**LORA)))
    said = [line for line in capsys.readouterr().err.splitlines() if "auxiliary loss" in line]
    assert said == [
        "Qwen3MoeForCausalLM: trained without the router's auxiliary loss (router_aux_loss_coef 0.001 in its "
        "configuration), which is no part of MODPO's"
    ]
    off = _trained(trainer(moe(router_aux_loss_coef=0.0), LoraConfig(**LORA), router_aux_loss_coef=0.0))
    assert log_column(by_default, "loss") == log_column(again, "loss") == log_column(off, "loss")
    assert not by_default.aux_loss_enabled
    assert not log_column(by_default, "aux_loss")
    assert "auxiliary loss" not in capsys.readouterr().err


def test_a_routers_loss_that_is_asked_for_is_refused() -> None:
    with pytest.raises(InputError, match=r"MODPOConfig:router_aux_loss_coef: is 0.01; fix: leave it out"):
        MODPOConfig(weights={"quality": 1.0}, router_aux_loss_coef=0.01)
