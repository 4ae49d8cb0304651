"""Where a training starts: policy and reference are one model there, and data that says otherwise is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from modpo.base.errors import InputError, Problem
from modpo.forward.low_rank import evaluating
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

    def require_reference_at_start(self, logps: Tensor, ref_logps: Tensor, read_again: Callable[[], Tensor]) -> None:
        """Refuse log-probs of a part's responses, (M,), that are not those of the reference in the data, (M,).

        What differs in training alone, such as dropout or noise of the embeddings, is no fault of the data: the part is
        read again without, by `read_again`.

        Raises:
            InputError: they are not.
        """
        if self.state.global_step or not self.model.training or not self._starts_at_reference:
            return
        tolerance = rounding(self._causal_lm, self.accelerator.mixed_precision)
        if apart(logps.detach(), ref_logps) <= tolerance:
            return
        with torch.no_grad(), evaluating(self.model):
            off = apart(read_again(), ref_logps)
        if off > tolerance:
            problem = f"at step 0 policy and reference should be one model, but their log-probs are {off:.1%} apart"
            fix = "score the data again with the model that training starts from"
            raise InputError(Problem("train_dataset", "ref_logps", problem, fix))
