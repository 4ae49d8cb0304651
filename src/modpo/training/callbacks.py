"""Callbacks of every training: a check of the gradients, costs, and a progress bar."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments

from modpo.base.costs import count
from modpo.base.errors import NumericError
from modpo.base.progress import Progress

NOT_FINITE_FIX = "lower learning_rate, or train in bfloat16 or float32"  # of a number that is not finite


class FiniteGradients(TrainerCallback):
    """Stops before an optimizer step that would carry NaN or infinity into the weights."""

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        if args.fp16:
            return  # the loss scaler finds its scale by overflowing, and skips those steps itself
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if gradients and not torch.isfinite(torch.stack([g.float().norm() for g in gradients]).sum()):
            raise NumericError(f"step {state.global_step}: a gradient is not finite; fix: {NOT_FINITE_FIX}")


class CountPasses(TrainerCallback):
    """Counts the passes of a trainer that reads each batch by one, forward and backward."""

    def on_substep_end(self, *_: Any, **kwargs: Any) -> None:
        count(forward_passes=1, backward_passes=1)

    on_step_end = on_substep_end  # the last batch of a step ends the step


class TrainingProgress(TrainerCallback, ExitStack):
    """A progress bar over optimizer steps. As a context it also ends when training fails."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label = label

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        progress = Progress(self._label, state.max_steps, "steps", done=state.global_step, spans=True)
        self._progress = self.enter_context(progress)

    def on_log(self, *_: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs and "rewards/accuracies" in logs:
            self._progress.note(f"loss {logs['loss']:.3f}, accuracy {logs['rewards/accuracies']:.2f}")
        elif logs.get("reward") is not None:  # of reinforcement learning
            self._progress.note(f"reward {logs['reward']:.3f}, KL {logs.get('kl', 0.0):.3f} a token")

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        self._progress.advance()

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        self.close()
