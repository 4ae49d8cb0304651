"""Whether there is something to train in what a trainer is given, and whether it would be trained."""

from __future__ import annotations

from collections.abc import Iterator

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists

from modpo.base.errors import Problem
from modpo.models.adapters import WITHOUT_HEAD
from modpo.models.quantized import is_quantized, keep_differentiable
from modpo.training.trl_arguments import WHERE, ArgumentValueError, Model

FROZEN = "nothing of it requires a gradient, so nothing would be trained"


def require_trainable(policy: Model, peft_config: PeftConfig | None) -> None:
    """Refuse, before anything is read, a model of which nothing, or not all that was asked for, would be trained.

    Raises:
        ArgumentValueError: frozen weights, whole weights in 4 bit, adapters of the head. EnvironmentFault: see
            `keep_differentiable`.
    """
    if problems := list(_problems(policy, peft_config)):
        raise ArgumentValueError(problems)
    keep_differentiable(policy)


def _problems(policy: Model, peft_config: PeftConfig | None) -> Iterator[Problem]:
    frozen = not any(parameter.requires_grad for parameter in policy.parameters())
    if peft_config is not None:
        if peft_config.inference_mode:
            yield Problem(WHERE, "peft_config", "has inference_mode=True, so nothing would be trained", "leave it out")
        if _adapts_head(policy, peft_config):
            yield Problem(WHERE, "peft_config", *WITHOUT_HEAD)
    elif isinstance(policy, PeftModel):
        if frozen:
            yield Problem(WHERE, "model", FROZEN, "load it with PeftModel.from_pretrained(..., is_trainable=True)")
        if isinstance(policy.get_output_embeddings(), BaseTunerLayer):
            yield Problem(WHERE, "model", *WITHOUT_HEAD)
    elif is_quantized(policy):
        yield Problem(
            WHERE, "model", "its quantised weights cannot be trained", "give `peft_config`, such as LoraConfig"
        )
    elif frozen:
        yield Problem(WHERE, "model", FROZEN, "call model.requires_grad_(True), or give `peft_config`")


def _adapts_head(policy: Model, peft_config: PeftConfig) -> bool:
    """Whether new adapters would change the language model head. `all-linear` leaves it out."""
    head = policy.get_output_embeddings()
    (name,) = [name for name, module in policy.named_modules() if module is head] or [""]
    parameters = getattr(peft_config, "target_parameters", None) or []
    if any(f".{name}.weight".endswith(f".{parameter}") for parameter in parameters):
        return True
    named = getattr(peft_config, "target_modules", None) not in (None, "all-linear")
    return named and bool(check_target_module_exists(peft_config, name))
