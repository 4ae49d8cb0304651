"""Bases whose weights are quantised, for instance to 4 bit (QLoRA): adapters are trained on them, and merged elsewhere.

An adapter that is merged into 4 bit is rounded with the sum. So such a base is measured with its adapter beside it,
and made whole again, in the number format of its other weights, where a policy is to be one model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.errors import EnvironmentFault
from modpo.base.text import first_line

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel


def is_quantized(model: PreTrainedModel | PeftModel) -> bool:
    """Whether weights of a model, or of the base of its adapters, are quantised."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, "hf_quantizer", None) is not None


def require_quantizer(config: dict[str, Any], folder: Path, where: str, field: str) -> None:
    """Check that what reads the quantised weights of a model is installed, if they are quantised.

    Args:
        config: what the folder's config.json says.

    Raises:
        EnvironmentFault: it is not, or it lacks a device.
    """
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        return
    from transformers.quantizers import AutoHfQuantizer

    try:
        AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment()
    except Exception as error:  # each method has checks of its own
        method = settings.get("quant_method", "an unknown method")
        problem = f"{folder} is quantised by {method}, which cannot be used here: {first_line(error)}"
        raise EnvironmentFault(f"{where}:{field}: {problem}; fix: {_install(str(method))}") from error


def _install(method: str) -> str:
    if method == "bitsandbytes":
        return 'install `"modpo[quantization]"`, or name the model without quantisation'
    return "install what it needs, or name the model without quantisation"


def keep_differentiable(model: nn.Module) -> None:
    """Let gradients pass through the 4-bit layers of a model, on a CPU too.

    There bitsandbytes keeps the weights of a layer that is read without a gradient in a layout of 16 bits that has no
    backward pass: adapters would be trained by what reaches them past the layers, without an error.

    Raises:
        EnvironmentFault: it was read so already. The way back is not exact.
    """
    module: Any  # bitsandbytes' own layers
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                problem = "its 4-bit weights were read on this CPU already, and bitsandbytes passes no gradient since"
                raise EnvironmentFault(f"model: {problem}; fix: load it anew, and let training read it first")


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """A quantised model with weights in its number format, which computes the same; it is changed, and can be saved."""
    keep_differentiable(model)
    whole: PreTrainedModel = model.dequantize(dtype=model.dtype)
    for name in ("_weight_conversions", "hf_quantizer", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        whole.__dict__.pop(name, None)  # transformers and PEFT would still take it for what its files are
    return whole
