"""Nothing is read, scored or trained where nothing, or not all that was asked for, would be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from modpo import MODPOConfig, MODPOTrainer
from modpo.base.errors import InputError

ADAPTERS = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
ROWS = [{"prompt": "Is it?", "chosen": " It is.", "rejected": " It is not, or so they say."}] * 4


def plain(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")


def saved(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """The folder of an adapter of the model."""
    get_peft_model(plain(folder), LoraConfig(**{**ADAPTERS, **changes})).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def trainer(model: Any, folder: Path, tmp_path: Path, peft_config: LoraConfig | None = None) -> MODPOTrainer:
    settings = {
        "weights": {"better": 1.0},
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "max_steps": 1,
        "disable_tqdm": True,
    }
    args = MODPOConfig(output_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), **settings)
    tokenizer, rows = AutoTokenizer.from_pretrained(folder), Dataset.from_list(ROWS)
    return MODPOTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, peft_config=peft_config)


def frozen(folder: Path, tmp_path: Path) -> tuple[Any, LoraConfig | None]:
    return plain(folder).requires_grad_(False), None


def frozen_adapter(folder: Path, tmp_path: Path) -> tuple[Any, LoraConfig | None]:
    return PeftModel.from_pretrained(plain(folder), saved(folder, tmp_path)), None


def for_inference(folder: Path, tmp_path: Path) -> tuple[Any, LoraConfig | None]:
    return plain(folder), LoraConfig(**ADAPTERS, inference_mode=True)


def of_the_head(folder: Path, tmp_path: Path) -> tuple[Any, LoraConfig | None]:
    return plain(folder), LoraConfig(**{**ADAPTERS, "target_modules": ["q_proj", "lm_head"]})


def of_the_head_by_pattern(folder: Path, tmp_path: Path) -> tuple[Any, LoraConfig | None]:
    return plain(folder), LoraConfig(**{**ADAPTERS, "target_modules": ".*(q_proj|lm_head)"})


def of_the_head_already(folder: Path, tmp_path: Path) -> tuple[Any, LoraConfig | None]:
    adapter = saved(folder, tmp_path, target_modules=["q_proj", "lm_head"])
    return PeftModel.from_pretrained(plain(folder), adapter, is_trainable=True), None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (frozen, "MODPOTrainer:model: nothing of it requires a gradient.*requires_grad_"),
        (frozen_adapter, "MODPOTrainer:model: nothing of it requires a gradient.*is_trainable=True"),
        (for_inference, "MODPOTrainer:peft_config: has inference_mode=True"),
        (of_the_head, "MODPOTrainer:peft_config: adapts the language model head"),
        (of_the_head_by_pattern, "MODPOTrainer:peft_config: adapts the language model head"),
        (of_the_head_already, "MODPOTrainer:model: adapts the language model head"),
    ],
)
def test_what_would_not_be_trained_is_refused_before_anything_is_scored(
    tiny_model: Path, tmp_path: Path, given: Callable[..., Any], words: str
) -> None:
    model, peft_config = given(tiny_model, tmp_path)
    with pytest.raises(InputError, match=words) as refused:
        trainer(model, tiny_model, tmp_path, peft_config)
    assert isinstance(refused.value, ValueError)  # as TRL raises it
    assert not (tmp_path / "cache").exists()


def half_frozen(folder: Path, tmp_path: Path) -> tuple[Any, LoraConfig | None]:
    model = PeftModel.from_pretrained(plain(folder), saved(folder, tmp_path), is_trainable=True)
    for name, parameter in model.named_parameters():
        if "layers.0." in name:
            parameter.requires_grad_(False)
    return model, None


def frozen_base(folder: Path, tmp_path: Path) -> tuple[Any, LoraConfig | None]:
    return plain(folder).requires_grad_(False), LoraConfig(**ADAPTERS)


def all_linear(folder: Path, tmp_path: Path) -> tuple[Any, LoraConfig | None]:
    return plain(folder), LoraConfig(**{**ADAPTERS, "target_modules": "all-linear"})


def head_as_a_whole(folder: Path, tmp_path: Path) -> tuple[Any, LoraConfig | None]:
    return plain(folder), LoraConfig(**{**ADAPTERS, "modules_to_save": ["lm_head"]})


@pytest.mark.parametrize("given", [half_frozen, frozen_base, all_linear, head_as_a_whole])
def test_what_is_trained_in_part_is_trained(tiny_model: Path, tmp_path: Path, given: Callable[..., Any]) -> None:
    model, peft_config = given(tiny_model, tmp_path)
    trained = trainer(model, tiny_model, tmp_path, peft_config)
    before = {n: p.detach().clone() for n, p in trained.model.named_parameters() if p.requires_grad}
    trained.train()
    moved = [n for n, p in trained.model.named_parameters() if n in before and not p.equal(before[n])]
    assert moved
