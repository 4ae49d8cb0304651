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
from modpo.training.kept_reference import apart, rounding

if TYPE_CHECKING:
    from modpo.training.config import MODPOConfig


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
        tolerance = rounding(self._causal_lm, self.accelerator.mixed_precision)
        if apart(logps.detach(), inputs["ref_logps"]) <= tolerance:
            return
        with torch.no_grad(), evaluating(model):
            off = apart(self._read(model, inputs).logps, inputs["ref_logps"])
        if off > tolerance:
            problem = f"at step 0 policy and reference should be one model, but their log-probs are {off:.1%} apart"
            fix = "score the data again with the model that training starts from"
            raise InputError(Problem("train_dataset", "ref_logps", problem, fix))
