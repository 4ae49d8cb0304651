"""A trainer's model and tokenizer by name, loaded as TRL loads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import create_model_from_path

from modpo.base.errors import Problem
from modpo.base.text import first_line
from modpo.training.config import MODPOConfig
from modpo.training.kept_reference import plain
from modpo.training.trl_arguments import WHERE, ArgumentValueError, Model


def policy_of(
    model: str | Model, args: MODPOConfig, quantization_config: Any, peft_config: PeftConfig | None
) -> tuple[Model, Callable[[], PreTrainedModel] | None]:
    """The model to train, on the device of training, and what reads it again as it was, from where it came from.

    By name it is float32, and bfloat16 where none of its weights is trained and `args` choose the faster format.

    Raises:
        ArgumentValueError: it cannot be loaded, or is loaded and a setting of loading is given.
    """
    if isinstance(model, str):
        given = _format(model, args, quantization_config, peft_config)
        load = partial(named_model, model, args, quantization_config, **given)
        policy: Model = load()
    elif quantization_config is not None:
        problem, fix = (
            "is given beside a model that is loaded already",
            "give the model by its name, or load it with it",
        )
        raise ArgumentValueError(Problem(WHERE, "quantization_config", problem, fix))
    else:
        policy, name = model, str(model.config._name_or_path)
        load = partial(
            named_model, name, args, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    # `precompute_ref_log_probs` asks that no second model is ever held; a model made in memory comes from nowhere.
    again = not args.precompute_ref_log_probs and policy.config._name_or_path
    return _on_device(policy, args), load if again else None


def reference_of(
    ref_model: str | Model,
    model: str | Model,
    args: MODPOConfig,
    quantization_config: Any,
    peft_config: PeftConfig | None,
) -> Model:
    """The reference policy, on the device of training; by name, it is in the policy's number format.

    Args:
        model: the policy, as it was given: loaded, or by its name, in the format of `policy_of`.

    Raises:
        ArgumentValueError: it cannot be loaded.
    """
    if isinstance(ref_model, str):
        given = _format(model, args, quantization_config, peft_config)
        ref_model = named_model(ref_model, args, quantization_config, field="ref_model", **given)
    return _on_device(ref_model, args)


def _format(
    model: str | Model, args: MODPOConfig, quantization_config: Any, peft_config: PeftConfig | None
) -> dict[str, Any]:
    """The `dtype` of the policy `model`, where it is not TRL's float32: weights that are trained stay in that."""
    if not isinstance(model, str):
        return {"dtype": model.dtype}
    if quantization_config is not None:
        return {}
    frozen = isinstance(peft_config, LoraConfig) and plain(peft_config) and not _trains_more(peft_config)
    chooses = args.chooses_dtype and args.bf16 and "quantization_config" not in _init_kwargs(args)
    return {"dtype": torch.bfloat16} if frozen and chooses else {}


def _trains_more(adapter: LoraConfig) -> bool:
    """Whether some of the model's own weights are trained beside the adapters."""
    return bool(adapter.modules_to_save or adapter.trainable_token_indices)


def _on_device(model: Model, args: MODPOConfig) -> Model:
    return model if hasattr(model, "hf_device_map") else model.to(args.device)


def named_model(
    name: str, args: MODPOConfig, quantization_config: Any = None, *, field: str = "model", **defaults: Any
) -> PreTrainedModel:
    """A causal language model by its name or folder: float32 unless a `dtype` is given.

    Pickled weights are read only where `model_init_kwargs` says `use_safetensors: False`: they can run code.

    Args:
        defaults: of `from_pretrained`, where `args.model_init_kwargs` says nothing else.

    Raises:
        ArgumentValueError: it cannot be loaded.
    """
    settings = {"use_safetensors": True, "trust_remote_code": args.trust_remote_code, **defaults, **_init_kwargs(args)}
    if quantization_config is not None and "quantization_config" in settings:
        problem, fix = "is in `args.model_init_kwargs` too", "leave one of them out"
        raise ArgumentValueError(Problem(WHERE, "quantization_config", problem, fix))
    if quantization_config is not None:
        settings["quantization_config"] = quantization_config
    if args.distributed_state is not None and args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        settings["device_map"] = None  # each process has a whole model on its own device
    try:
        model: PreTrainedModel = create_model_from_path(name, **settings)
    except Exception as error:  # a model's files can make transformers raise anything
        problem = f"{name!r} cannot be loaded ({first_line(error)})"
        raise ArgumentValueError(Problem(WHERE, field, problem, _fix(error))) from error
    return model


def named_tokenizer(model: PreTrainedModel | PeftModel, args: MODPOConfig, *, by_name: bool) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model.

    Args:
        by_name: the model was loaded by its name; its `revision` is the tokenizer's too.

    Raises:
        ArgumentValueError: there is none.
    """
    revision = _init_kwargs(args).get("revision") if by_name else None
    where = str(model.config._name_or_path)
    try:
        return AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=args.trust_remote_code)
    except Exception as error:  # a tokenizer's files can make it raise anything
        problem = f"is left out, and the tokenizer of {where!r} cannot be loaded ({first_line(error)})"
        raise ArgumentValueError(Problem(WHERE, "processing_class", problem, "give the model's tokenizer")) from error


def use_pad_token(tokenizer: PreTrainedTokenizerBase, token: str | None) -> None:
    """Make a token the one that pads; by default the tokenizer's own, else its end-of-text token.

    Raises:
        ArgumentValueError: it is not in the vocabulary.
    """
    token = token or tokenizer.pad_token or tokenizer.eos_token
    if token is None or token not in tokenizer.get_vocab():
        problem = f"the specified `pad_token` ({token!r}) is not found in the vocabulary of the tokenizer"
        raise ArgumentValueError(Problem("MODPOConfig", "pad_token", problem, "name a token that it has"))
    tokenizer.pad_token = token


@contextmanager
def done_already(
    args: MODPOConfig, policy: Model, peft_config: PeftConfig | None, *, by_name: bool
) -> Iterator[MODPOConfig]:
    """Within it `args` ask TRL for nothing that is there: the policy is loaded, and the reference needs no model."""
    asked = args.model_init_kwargs, args.precompute_ref_log_probs
    if by_name:
        args.model_init_kwargs = None
    # Without PEFT, TRL would load a second model to be the reference.
    args.precompute_ref_log_probs = not isinstance(policy, PeftModel) and peft_config is None
    try:
        yield args
    finally:
        args.model_init_kwargs, args.precompute_ref_log_probs = asked


def _init_kwargs(args: MODPOConfig) -> dict[str, Any]:
    return dict(args.model_init_kwargs or {})


def _fix(error: Exception) -> str:
    said = str(error)
    if "trust_remote_code" in said:
        return "set trust_remote_code to True, if you trust the code that comes with the model"
    if "safetensors" in said and isinstance(error, OSError):
        pickled = "model_init_kwargs={'use_safetensors': False} reads pickled weights, which can run code"
        return f"convert it: load it with transformers and call save_pretrained; {pickled}"
    return "name a folder, or a model of the Hub, that `AutoModelForCausalLM` loads"
