"""The reference policy of a trainer, also when the policy is no longer what it was.

Rows that are scored before training are scored by the model as it is given. Rows that come later need it again: it is
the policy without its adapters, or with those it began with, or, where all weights are trained, read again from where
it came from. No second model is held while training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from modpo.base.errors import InputError, Problem
from modpo.forward.low_rank import causal_lm
from modpo.training.trl_arguments import WHERE, ArgumentValueError, Model

OTHER_FIX = "give these rows as eval_dataset when the trainer is made, or give it a ref_model"

# What a policy and its reference may differ by when they are the same model: rounding, relative to a log-prob.
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
ROUNDING_16_BIT = 0.05


def apart(logps: Tensor, ref_logps: Tensor) -> float:
    """How far log-probs of M responses, (M,), are from others of them, (M,), relative to these; the mean."""
    return ((logps - ref_logps).abs() / ref_logps.abs().clamp(min=10)).mean().item()


def rounding(model: PreTrainedModel, mixed_precision: str) -> float:
    """How far the log-probs of a model may be from its own, read at another time."""
    return ROUNDING_16_BIT if mixed_precision != "no" else ROUNDING.get(model.dtype, ROUNDING_16_BIT)


class KeptReference:
    """Finds the reference policy at any time.

    Args:
        ref_model: the reference, where it is another model.
        peft_config: of adapters that are added to the policy as it is given.
        read_again: the policy as it was, from where it came from; None: it is not to be read again.
    """

    def __init__(
        self,
        ref_model: Model | None,
        peft_config: PeftConfig | None,
        read_again: Callable[[], PreTrainedModel] | None,
    ) -> None:
        self.ref_model, self._read_again = ref_model, read_again
        self._start: dict[str, Tensor] | None = None  # of the trained weights, where leaving adapters out is not enough
        self._again: PreTrainedModel | None = None
        self._is_left_without = peft_config is not None and plain(peft_config)

    def remember(self, policy: Model) -> None:
        """Keep the trained weights that a policy with adapters begins with, where the reference is it with them."""
        if self.ref_model is None and isinstance(policy, PeftModel) and not self._is_left_without:
            trained = ((name, p) for name, p in policy.named_parameters() if p.requires_grad)
            self._start = {name: p.detach().cpu().clone() for name, p in trained}

    @contextmanager
    def at(self, policy: Model, *, moved: bool) -> Iterator[Model]:
        """Within it, the reference, from the trainer's policy as it is now.

        Args:
            moved: whether the policy has been trained.

        Raises:
            ArgumentValueError: it is not kept.
        """
        if self.ref_model is not None:
            yield self.ref_model
        elif isinstance(policy, PeftModel) and self._start is None:
            with policy.disable_adapter():
                yield causal_lm(policy)
        elif isinstance(policy, PeftModel):
            with _weights(policy, self._start or {}):
                yield policy
        elif not moved:
            yield policy
        else:
            yield self._from_its_source()

    def _from_its_source(self) -> PreTrainedModel:
        if self._read_again is None:
            problem = (
                "Cannot compute reference log-probs for a dataset passed to `evaluate()` after training has started: "
                "all weights were trained, and the model cannot be read again: it was made in memory, or "
                "`precompute_ref_log_probs=True` asks for no second one"
            )
            raise ArgumentValueError(Problem(WHERE, "eval_dataset", problem, OTHER_FIX))
        try:
            self._again = self._again or self._read_again()
        except InputError as error:
            problem = f"all weights were trained, and the model as it was is gone: {error.problems[0].problem}"
            raise ArgumentValueError(Problem(WHERE, "eval_dataset", problem, OTHER_FIX)) from error
        return self._again


def plain(config: PeftConfig) -> bool:
    """Whether a model without the adapters is as it was before: they alone are trained, and the base is not changed."""
    start = getattr(config, "init_lora_weights", True)
    changes_base = isinstance(start, str) and start not in ("gaussian", "orthogonal")
    return not changes_base and getattr(config, "bias", "none") == "none"


@contextmanager
def _weights(model: Model, values: dict[str, Tensor]) -> Iterator[None]:
    """Within it, some of a model's weights have other values."""
    now = {name: model.get_parameter(name).detach().clone() for name in values}
    try:
        _set(model, values)
        yield
    finally:
        _set(model, now)


@torch.no_grad()
def _set(model: Model, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        model.get_parameter(name).copy_(value)
