"""Models whose folder holds quantised weights, such as 4-bit ones of bitsandbytes: adapters are trained beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.errors import EnvironmentFault, InputError, Problem
from modpo.base.text import first_line
from modpo.models.folders import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from modpo.experiment.sections import Experiment

SETTING = "quantization_config"
INSTALL = "pip install 'modpo[quantization]'"


def quantization(folder: Path, where: str, field: str) -> dict[str, Any] | None:
    """How the weights of a model's folder are quantised; None where they are not."""
    config = read_object(folder / "config.json", where, field)
    found = config.get(SETTING) or (config.get("text_config") or {}).get(SETTING)
    return found if isinstance(found, dict) else None


def require_dequantizer(folder: Path, where: str, field: str) -> None:
    """Refuse quantised weights that this installation cannot read, before anything is read.

    Raises:
        EnvironmentFault: the package that reads them is not installed, or does not work on this machine.
    """
    settings = quantization(folder, where, field)
    if settings is None:
        return
    from transformers.quantizers import AutoHfQuantizer

    method = settings.get("quant_method") or "bitsandbytes"
    try:
        AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment()
    except Exception as error:  # each way of quantising raises its own
        fix = (
            INSTALL if method == "bitsandbytes" else "install what it asks for, or take the model that is not quantised"
        )
        problem = f"{folder} holds weights quantised by {method}, which cannot be read here ({first_line(error)})"
        raise EnvironmentFault(str(Problem(where, field, problem, fix))) from error


def check_quantized(experiment: Experiment, folder: Path, where: str, field: str) -> None:
    """Refuse what cannot be trained from quantised weights, or whose result could not be saved.

    Raises:
        InputError: all weights are to be trained, or adapters are to be merged into the base.
        EnvironmentFault: see `require_dequantizer`.
    """
    if quantization(folder, where, field) is None:
        return
    require_dequantizer(folder, where, field)
    if experiment.lora is None:
        problem, fix = "is null, and quantised weights cannot be trained", "leave it out, or take a base that is not"
        raise InputError(Problem(experiment.where("lora"), "lora", problem, fix))
    fix = "make it with the base that is not quantised, and name what it made"
    if experiment.sft is not None:
        problem = "would be merged into quantised weights, which would round it away"
        raise InputError(Problem(experiment.where("sft"), "sft", problem, fix))
    for name, objective in experiment.objectives.items():
        for role in ("reward", "proxy"):
            section = getattr(objective, role)
            if section is not None and section.train is not None and section.train.kind == "reward_model":
                path, problem = f"objectives.{name}.{role}.train", "would be merged into quantised weights"
                raise InputError(Problem(experiment.where(path), path, problem, fix))


def is_quantized(model: Any) -> bool:
    """Whether the weights of a model in memory are quantised."""
    return bool(getattr(model, "is_quantized", False))


def keep_trainable_layout(model: Any) -> None:
    """Keep bitsandbytes from laying weights out anew for inference on a CPU; where it has, lay them out as before.

    It does so at the first pass without a gradient, on CPUs with AVX512-BF16. The product with weights in that layout
    is not differentiable: adapters below it would get no gradient, and training would go on without a word.
    """
    laid_out = False
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            laid_out |= getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False)
    if laid_out:
        model.state_dict()  # saving lays them out as before


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with plain weights, into which adapters can be merged; the model itself where they are plain."""
    return model.dequantize() if is_quantized(model) else model
