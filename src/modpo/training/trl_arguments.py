"""What is passed to a trainer as it is to TRL's, checked before anything is loaded."""

from __future__ import annotations

from typing import Any, TypeAlias

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig

from modpo.base.errors import InputError, Problem
from modpo.training.config import MODPOConfig

Model: TypeAlias = PreTrainedModel | PeftModel

WHERE = "MODPOTrainer"


class ArgumentValueError(InputError, ValueError):
    """An argument that cannot be honoured. A ValueError too, as TRL raises it."""


class ArgumentTypeError(InputError, TypeError):
    """An argument of another kind than can be read. A TypeError too, as TRL raises it."""


def given_or_default(args: Any, model: str | Model) -> MODPOConfig:
    """A trainer's `args`; left out, the defaults and a folder named after the model.

    Raises:
        ArgumentTypeError: they are no `MODPOConfig`.
    """
    if args is None:
        name = (model if isinstance(model, str) else str(model.config._name_or_path)).rstrip("/").rpartition("/")[2]
        return MODPOConfig(output_dir=f"{name}-MODPO")
    if not isinstance(args, MODPOConfig):
        fix = "give a modpo.MODPOConfig: it has every field of trl.DPOConfig"
        fix += ", so the same arguments will do" if isinstance(args, DPOConfig) else ""
        raise ArgumentTypeError(Problem(WHERE, "args", f"is a {type(args).__name__}", fix))
    return args


def require_arguments(model: Any, ref_model: Any, data_collator: Any, processing_class: Any) -> None:
    """Refuse arguments that TRL takes and this trainer cannot honour, and those that TRL refuses too.

    Raises:
        ArgumentValueError, ArgumentTypeError: naming the argument.
    """
    if data_collator is not None:
        fix = "leave it out: prompts are read with all their responses, which `MODPOTrainer.collator_class` lays out"
        raise ArgumentValueError(Problem(WHERE, "data_collator", f"is a {type(data_collator).__name__}", fix))
    if not isinstance(ref_model, (str, nn.Module, type(None))):
        fix = "give a model or its name; the second argument is ref_model, as in TRL, so write args=..."
        raise ArgumentTypeError(Problem(WHERE, "ref_model", f"is a {type(ref_model).__name__}", fix))
    if ref_model is not None and ref_model is model:
        fix = "leave ref_model out: the reference is then the model as it is given"
        raise ArgumentValueError(Problem(WHERE, "ref_model", "is the same object as `model`", fix))
    if processing_class is not None and not isinstance(processing_class, PreTrainedTokenizerBase):
        fix = "give the model's tokenizer; of a processor, `processor.tokenizer`: texts alone are trained on"
        raise ArgumentTypeError(Problem(WHERE, "processing_class", f"is a {type(processing_class).__name__}", fix))
