"""Exact resume: a training run that is killed at any step and started again ends with the same bits.

transformers' own resume is the base: it restores the optimizer, the schedule, the scaler and the place in the data.
What is added: a checkpoint holds just the trained weights and what transformers forgets (costs, and what was measured
since the last entry of the log), and random numbers are restored before anything of a step is drawn. The private names
of transformers and TRL that are touched here stand in `modpo.training.trl_contract`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from modpo.base.costs import NOTHING, Cost, Meter
from modpo.base.errors import NumericError
from modpo.base.fault_points import reach
from modpo.base.files import write_json
from modpo.base.interrupts import Interruption, deferred
from modpo.base.progress import say
from modpo.training.callbacks import TrainingProgress
from modpo.training.checkpoints import PROGRESS, WEIGHTS, Checkpoints, load_trained, trained_tensors


@contextmanager
def trained(trainer: Resumable, checkpoints: Checkpoints, label: str) -> Iterator[dict[str, Any]]:
    """Train to the end, from the newest checkpoint if there is one; the block publishes the result.

    The block is given the cost, see `Cost.written`. The checkpoints are deleted after it, and stay when it fails.

    Raises:
        Interrupted: a signal came; the step at hand was finished and saved. IntegrityError: see `Checkpoints.newest`.
        NumericError: a number is not finite; the checkpoints before stay.
    """
    with deferred() as interruption, TrainingProgress(label) as progress:
        trainer.add_callback(progress)
        if not trainer.train_resumably(checkpoints, interruption, label):
            interruption.leave_if_asked()
        yield trainer.cost.written()
        shutil.rmtree(checkpoints.folder, ignore_errors=True)


class Resumable(Trainer):
    """A mixin for TRL's trainers, to stand before the trainer in the order of bases.

    Without `train_resumably` a trainer saves and resumes as transformers does.

    Attributes:
        tokens_read: tokens that were read to be trained on, without padding.
        tokens_generated: answers' tokens that were sampled while training.
    """

    tokens_read = 0
    tokens_generated = 0
    _checkpoints: Checkpoints | None = None  # saves and loads; if there is none, transformers does
    _resumed_from: str | None = None  # the checkpoint that this training began with
    _random_state_of: str | None = None  # the checkpoint whose random numbers were restored
    _unlogged: dict[str, Any] | None = None  # what the checkpoint had measured since the last entry of the log
    _cost_before: Cost = NOTHING  # of the checkpoint
    _meter: Meter

    def train_resumably(self, checkpoints: Checkpoints, interruption: Interruption, label: str) -> bool:
        """Train from the newest checkpoint to the end, or until `interruption` asks to leave, and save on the way.

        A trainer can do so once. When it is asked to leave, the step at hand is finished and saved.

        Args:
            label: what the console calls the run.

        Returns:
            Whether the end was reached.

        Raises:
            IntegrityError: there is a checkpoint, and it is of another run.
            NumericError: a number is not finite; the checkpoints before stay.
        """
        self.args.ignore_data_skip = False  # with it the data would begin anew, and the end be another
        self.add_callback(_SaveOrStop(checkpoints, interruption, label))
        self._checkpoints, self._meter = checkpoints, Meter()
        with self._meter:
            newest = checkpoints.newest()
            self.train(resume_from_checkpoint=str(newest) if newest else None)
        state = self.state
        if not interruption.asked or state.global_step >= state.max_steps:
            return True
        done = "saved" if checkpoints.every else "not saved, as `training.save_steps: 0` says, but stopped"
        say(f"{label}: {done} at step {state.global_step} of {state.max_steps}")
        return False

    @property
    def cost(self) -> Cost:
        """What `train_resumably` has taken, with what came before the checkpoint."""
        counted = self._cost_before + self._meter.cost
        return replace(counted, tokens=self.tokens_read, tokens_generated=self.tokens_generated)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """As transformers', but after a resume the random numbers are restored at once: what is drawn for these
        batches comes before the point where transformers would."""
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._resumed_from is not None:
            self._load_rng_state(self._resumed_from)
            self._continue_log()
        return found

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint != self._random_state_of:  # once: what was drawn since must not be drawn again
            super()._load_rng_state(checkpoint)
            self._random_state_of = checkpoint

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._resumed_from, self._random_state_of = resume_from_checkpoint, None
        if self._checkpoints is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        folder = Path(resume_from_checkpoint)
        load_trained(self.model, folder / WEIGHTS)
        self._unlogged = json.loads((folder / PROGRESS).read_text("utf-8"))
        self._cost_before = Cost.of(self._unlogged)
        self.tokens_read = self._cost_before.tokens
        self.tokens_generated = self._cost_before.tokens_generated

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Publish a checkpoint of the step that was just finished; a weight that is not finite is a NumericError."""
        if self._checkpoints is None:
            super()._save_checkpoint(model, trial)
            return
        step = self.state.global_step
        if step >= self.state.max_steps:
            return  # transformers would train on from it when resumed; the finished policy is what is published
        weights = trained_tensors(self.model)
        if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
            raise NumericError(f"step {step}: {bad[0]} is not finite; fix: lower learning_rate")
        self.store_flos()
        with self._checkpoints.new(step) as folder:
            save_file({n: t.cpu().contiguous() for n, t in weights.items()}, folder / WEIGHTS)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            unlogged = {"unlogged": self.unlogged(), "logged_step": self._globalstep_last_logged}
            write_json(folder / PROGRESS, {**asdict(self.cost), "loss": self._tr_loss.item(), **unlogged})

    def unlogged(self) -> dict[str, Any]:
        """What was measured since the last entry of the log, as JSON."""
        metrics: dict[str, Any] = self._metrics["train"]
        return metrics

    def continue_log(self, unlogged: dict[str, Any]) -> None:
        """Put back what `unlogged` gave."""
        self._metrics["train"].update(unlogged)

    def _continue_log(self) -> None:
        """Put back what was not logged yet, once: transformers sets it to nothing when training begins."""
        if self._unlogged is None:
            return
        self._tr_loss += self._unlogged["loss"]
        self._total_loss_scalar -= self._unlogged["loss"]  # the mean that is logged in the end is of this run alone
        self.continue_log(self._unlogged["unlogged"])
        self._globalstep_last_logged = self._unlogged["logged_step"]
        self._unlogged = None


class _SaveOrStop(TrainerCallback):
    """Asks for a checkpoint every few steps, and at a signal for one more and the end."""

    def __init__(self, checkpoints: Checkpoints, interruption: Interruption, label: str) -> None:
        self._checkpoints, self._interruption, self._label = checkpoints, interruption, label

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        if state.global_step:
            say(f"{self._label}: goes on from step {state.global_step} of {state.max_steps}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        reach("step.done", self._checkpoints.folder)
        every, asked = self._checkpoints.every, self._interruption.asked
        control.should_save |= bool(every) and (asked or state.global_step % every == 0)
        control.should_training_stop |= asked
