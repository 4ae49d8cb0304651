"""Callbacks of every training: a check of the gradients, costs, and a progress bar."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modpo.base.costs import count
from modpo.base.errors import NumericError
from modpo.base.progress import Progress


class FiniteGradients(TrainerCallback):
    """Stops before an optimizer step that would carry NaN or infinity into the weights."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.fp16:
            return  # the loss scaler finds its scale by overflowing, and skips those steps itself
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if gradients and not torch.isfinite(torch.stack([g.float().norm() for g in gradients]).sum()):
            raise NumericError(
                f"step {state.global_step}: a gradient is not finite; fix: lower learning_rate, or train in "
                "bfloat16 or float32"
            )


class CountPasses(TrainerCallback):
    """Counts the passes of a trainer that reads each batch by one, forward and backward."""

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        count(forward_passes=1, backward_passes=1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        count(forward_passes=1, backward_passes=1)


class TrainingProgress(TrainerCallback):
    """A progress bar over optimizer steps. As a context it also ends when training fails."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._progress: Progress | None = None

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.__exit__(kind, error, trace)
            self._progress = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._progress = Progress(self._label, state.max_steps, "steps", done=state.global_step).__enter__()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self._progress and logs and "loss" in logs and "rewards/accuracies" in logs:
            self._progress.note(f"loss {logs['loss']:.3f}, accuracy {logs['rewards/accuracies']:.2f}")
        elif self._progress and logs and logs.get("reward") is not None:  # of reinforcement learning
            self._progress.note(f"reward {logs['reward']:.3f}, KL {logs.get('kl', 0.0):.3f} a token")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._progress:
            self._progress.advance()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.__exit__(None, None, None)
