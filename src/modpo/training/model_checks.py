"""What a model must be to be trained on preferences, found before anything is scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from modpo.base.errors import InputError, Problem
from modpo.base.progress import say_once
from modpo.forward.low_rank import causal_lm
from modpo.models.adapters import HEAD_FIX, HEAD_PROBLEM, adapts_head, would_adapt_head
from modpo.models.positions import most_positions, require_embedded, require_readable, vocabulary_size
from modpo.models.quantized import is_quantized, keep_differentiable

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from modpo.training.config import MODPOConfig


def require_trainable(model: PreTrainedModel | PeftModel, peft_config: PeftConfig | None) -> None:
    """Refuse a model of which nothing, or an adapter that is never read, would be trained.

    Raises:
        InputError: no parameter of the model asks for a gradient, and no adapters are to be added; adapters on the
            output head, which is read past them.
    """
    if adapts_head(model) or (peft_config is not None and would_adapt_head(model, peft_config)):
        field = "model" if peft_config is None else "peft_config.target_modules"
        raise InputError(Problem("MODPOTrainer", field, HEAD_PROBLEM, HEAD_FIX))
    keep_differentiable(model)
    if peft_config is not None:
        if peft_config.inference_mode:
            problem, fix = "is True, so nothing would be trained", "leave it out"
            raise InputError(Problem("MODPOTrainer", "peft_config.inference_mode", problem, fix))
        return
    if not any(parameter.requires_grad for parameter in model.parameters()):
        problem, fix = "no parameter of it asks for a gradient, so nothing would be trained", _fix(model)
        raise InputError(Problem("MODPOTrainer", "model", problem, fix))
    if is_quantized(model) and not hasattr(model, "peft_config"):
        problem, fix = "its weights are quantised, and cannot be trained", "give `peft_config`, such as a LoraConfig"
        raise InputError(Problem("MODPOTrainer", "model", problem, fix))


def require_checkpointable(
    model: PreTrainedModel | PeftModel, peft_config: PeftConfig | None, args: MODPOConfig
) -> None:
    """Refuse prefix tuning with gradient checkpointing: layers that run again would see the prefix twice.

    Raises:
        InputError: both are asked for.
    """
    if args.gradient_checkpointing and any(
        one.peft_type.value == "PREFIX_TUNING" for one in _adapters(model, peft_config)
    ):
        problem = "is True, as it is by default, and does not go with prefix tuning"
        raise InputError(Problem("MODPOConfig", "gradient_checkpointing", problem, "set it to False"))


def _adapters(model: PreTrainedModel | PeftModel, peft_config: PeftConfig | None) -> list[PeftConfig]:
    """The adapters that a model is trained with: those that act on it, or one that is still to be put on it."""
    if peft_config is not None:
        return [peft_config]
    return [model.peft_config[name] for name in model.active_adapters] if isinstance(model, PeftModel) else []


def require_readable_rows(
    scored: Mapping[str, Any], model: PreTrainedModel | PeftModel, peft_config: PeftConfig | None = None
) -> None:
    """Refuse scored rows that the model has no positions or no embeddings for: another model may have read them.

    Args:
        scored: by the trainer's argument; several data sets by their names.
        peft_config: of an adapter that is still to be put on the model; one of virtual tokens takes positions too.

    Raises:
        InputError: naming the first such row.
    """
    positions, vocabulary = most_positions(model), vocabulary_size(model)
    virtual = sum(one.num_virtual_tokens for one in _adapters(model, peft_config) if one.is_prompt_learning)
    positions = None if positions is None else max(positions - virtual, 0)
    fix = "lower `max_length` to {}" + (f": the adapter's virtual tokens take {virtual}" if virtual else "")
    for name, rows in scored.items():
        if rows is None:
            continue
        if isinstance(rows, Mapping):
            require_readable_rows({f"{name}[{part}]": of_part for part, of_part in rows.items()}, model, peft_config)
            continue
        if _fits(rows, positions, vocabulary):
            continue
        ids = rows.select_columns(["prompt_ids", "responses_ids"]).with_format("numpy")
        lengths, highest = zip(*(part for batch in ids.iter(1000) for part in _extents(batch)), strict=True)

        def place(i: int, name: str = name) -> str:
            return f"{name}:row {i}"

        require_readable(place, lengths, positions, fix)
        if vocabulary is not None:
            require_embedded(place, highest, vocabulary)


def _fits(rows: Dataset, positions: int | None, vocabulary: int | None) -> bool:
    """Whether the longest prompt with the longest response, and the highest id of all, are within bounds.

    Read from the table as it lies, so a sweep's every point can ask: the rows themselves need a look only if not.
    """
    from pyarrow.compute import list_flatten, list_value_length
    from pyarrow.compute import max as largest

    prompts = rows.data.column("prompt_ids")
    responses = list_flatten(rows.data.column("responses_ids"))
    longest = sum(largest(list_value_length(ids)).as_py() or 0 for ids in (prompts, responses))
    highest = max(largest(list_flatten(ids)).as_py() or 0 for ids in (prompts, responses))
    return (positions is None or longest <= positions) and (vocabulary is None or highest < vocabulary)


def _extents(batch: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Length and highest token id of each row."""
    for prompt, responses in zip(batch["prompt_ids"], batch["responses_ids"], strict=True):
        yield len(prompt) + max(map(len, responses)), int(max(max(prompt), *map(max, responses)))


def _fix(model: PreTrainedModel | PeftModel) -> str:
    if hasattr(model, "peft_config"):
        return "load the adapter with PeftModel.from_pretrained(..., is_trainable=True)"
    return "give `peft_config`, or call model.requires_grad_(True)"


def without_router_loss(model: PreTrainedModel | PeftModel, args: MODPOConfig) -> None:
    """Leave the router's auxiliary loss of a mixture of experts off, and say so once: it is no part of MODPO's loss."""
    config = causal_lm(model).config.get_text_config()
    if hasattr(config, "output_router_logits") and getattr(config, "router_aux_loss_coef", None):
        say_once(
            f"{type(causal_lm(model)).__name__}: trained without the router's auxiliary loss "
            f"(router_aux_loss_coef {config.router_aux_loss_coef} in its configuration), which is no part of MODPO's"
        )
    args.router_aux_loss_coef = 0.0
