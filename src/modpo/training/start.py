"""Where a training starts: policy and reference are one model there, and data that says otherwise is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from modpo.base.errors import InputError, Problem
from modpo.forward.low_rank import evaluating
from modpo.forward.readings import ResponseReadings

if TYPE_CHECKING:
    from modpo.training.config import MODPOConfig

# What policy and reference may differ by is rounding, relative to the log-prob.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
TOLERANCE_16_BIT = 0.05


def adds_nothing(adapter: PeftConfig | None) -> bool:
    """Whether a model is what it was when an adapter has just been put on it.

    Prompt tuning and its kin put random tokens before every row, and the `init_*` of others can be switched off.
    """
    if adapter is None:
        return True
    starts = [value for name, value in vars(adapter).items() if name.startswith("init_")]
    return not adapter.is_prompt_learning and not any(start is False for start in starts)


class ReferenceAtStart(Trainer):
    """A trainer that checks at its very first step, and at no other, that the data was scored with its model."""

    args: MODPOConfig
    _causal_lm: PreTrainedModel
    _starts_at_reference = False  # until the trainer knows its model

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' trainer; what a second call starts from is no longer the reference."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._starts_at_reference = False

    def _read(self, model: nn.Module, inputs: dict[str, Any]) -> ResponseReadings:
        """What the model says of a part's M responses."""
        raise NotImplementedError

    def require_reference_at_start(self, model: nn.Module, inputs: dict[str, Any], logps: Tensor) -> None:
        """Refuse a part whose responses' log-probs, (M,), are not those of the reference in the data.

        What differs in training alone, such as dropout or noise of the embeddings, is no fault of the data: it is read
        again without.

        Raises:
            InputError: they are not.
        """
        if self.state.global_step or not self.model.training or not self._starts_at_reference:
            return
        tolerance = TOLERANCE.get(self._causal_lm.dtype, TOLERANCE_16_BIT)
        if self.accelerator.mixed_precision in ("bf16", "fp16"):
            tolerance = TOLERANCE_16_BIT
        if _apart(logps, inputs["ref_logps"]) <= tolerance:
            return
        with torch.no_grad(), evaluating(model):
            off = _apart(self._read(model, inputs).logps, inputs["ref_logps"])
        if off > tolerance:
            problem = f"at step 0 policy and reference should be one model, but their log-probs are {off:.1%} apart"
            fix = "score the data again with the model that training starts from"
            raise InputError(Problem("train_dataset", "ref_logps", problem, fix))


def _apart(logps: Tensor, ref_logps: Tensor) -> float:
    """How far log-probs (M,) are from others, relative to these."""
    return ((logps.detach() - ref_logps).abs() / ref_logps.abs().clamp(min=10)).mean().item()
