"""Adapters of the tiny model: made of random numbers, read by hand, and what a model with them says of two prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from modpo.forward.logprobs import padded_logps
from modpo.training.continuous import adapter_names

PROMPTS = [[5, 6, 7], [8, 9, 40, 41]]
RESPONSES = [[[10, 11, 12, 0], [30, 0]], [[20, 21, 22, 23, 24, 0]]]


def base(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval()


def load_policy(base: Any, folder: Path, objectives: list[str]) -> PeftModel:
    """The policy that `ContinuousTrainer.save_policy` wrote, in the base's dtype, to be steered with `steer`."""
    adapters = adapter_names(objectives)
    model: PeftModel | None = None
    for name, adapter in adapters.items():
        if model is None:
            model = PeftModel.from_pretrained(base, folder / name, adapter_name=adapter)
        else:
            model.load_adapter(folder / name, adapter_name=adapter)
    assert model is not None
    model.base_model.set_adapter(list(adapters.values()))
    model.requires_grad_(False)
    return model.to(base.dtype).eval()


def make_adapter(tiny_model: Path, folder: Path, seed: int, **settings: Any) -> Path:
    """An adapter as PEFT saves it, of random numbers."""
    lora = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings
    torch.manual_seed(seed)
    model = get_peft_model(base(tiny_model), LoraConfig(**lora))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def dense(folder: Path) -> dict[str, Tensor]:
    """s B A of each module, by hand from the files, in float64."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    state = load_file(folder / "adapter_model.safetensors")
    modules = [name.removesuffix(".lora_A.weight") for name in state if "lora_A" in name]
    return {m: scale * state[f"{m}.lora_B.weight"].double() @ state[f"{m}.lora_A.weight"].double() for m in modules}


def logps(model: Any) -> Tensor:
    with torch.no_grad():
        return padded_logps(model, PROMPTS, RESPONSES)
