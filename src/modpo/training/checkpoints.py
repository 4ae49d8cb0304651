"""Exact resume: a training run that is killed at any step and started again ends with the same bits.

    <folder>/checkpoint-<step>/    trained weights, optimizer, schedule, random numbers, place in the data, manifest

transformers' own resume is the base. Around it: a checkpoint appears whole or not at all, is verified before it is
used, and is refused where it is of another run. transformers' own files are read with `weights_only`, as it does.
What is touched of the private surface of transformers and TRL: `_save_optimizer_and_scheduler`, `_save_scaler`,
`_save_rng_state`, `_tr_loss`, `_total_loss_scalar`, `_globalstep_last_logged`, `_metrics` and `_total_train_tokens`;
tests/end_to_end/test_resume.py finds out when one of them means something else.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from modpo.base.costs import NOTHING, Cost, Meter
from modpo.base.errors import IntegrityError, NumericError
from modpo.base.fault_points import reach
from modpo.base.files import new_folder, read_manifest, remove_leftovers, write_json
from modpo.base.interrupts import Interruption, deferred
from modpo.base.progress import say
from modpo.training.callbacks import TrainingProgress

if TYPE_CHECKING:
    from modpo.training.on_policy import OnPolicy
    from modpo.training.trainer import MODPOTrainer

NAME = re.compile(r"checkpoint-(\d+)")
WEIGHTS = "trained.safetensors"  # every trained tensor, by its name in the model
PROGRESS = "progress.json"  # what transformers' own state leaves out
VERSIONED = ("torch", "transformers", "trl", "peft")


@contextmanager
def trained(trainer: MODPOTrainer | OnPolicy, checkpoints: Checkpoints, label: str) -> Iterator[dict[str, float]]:
    """Train to the end, from the newest checkpoint if there is one; the block publishes what came of it.

    The block is given the cost, see `ResumableRun.cost`. The checkpoints go
    after it, and stay when it fails.

    Raises:
        Interrupted: a signal came; the step at hand was finished and saved. IntegrityError: see `Checkpoints.newest`.
        NumericError: a number is not finite; the checkpoints before stay.
    """
    run = ResumableRun(trainer, checkpoints, label)
    with deferred() as interruption, TrainingProgress(label) as progress:
        trainer.add_callback(progress)
        if not run.train(interruption):
            interruption.leave_if_asked()
        yield run.cost
        shutil.rmtree(checkpoints.folder, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one training run, on disk.

    Args:
        folder: where they lie; nothing else does.
        run: everything that decides the run's numbers, by name, as JSON. World size and library versions are added.
        every: optimizer steps between two; 0 for none.
        keep: how many stay.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], *, every: int, keep: int) -> None:
        versions = {name: importlib.metadata.version(name) for name in VERSIONED}
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.folder, self.every, self.keep = folder, every, keep
        # As it will be read: tuples are lists then, and keys text.
        self.run = json.loads(json.dumps({**run, "versions": versions, "world_size": world_size}))

    def newest(self) -> Path | None:
        """The newest checkpoint that verifies; each one passed over is said. Call it under the folder's lock.

        Raises:
            IntegrityError: it is of another run, naming what differs.
        """
        remove_leftovers(self.folder)
        found = self._found()
        for folder in reversed(list(found.values())):
            try:
                manifest = read_manifest(folder)
                problem = f"{folder}: has no manifest"
            except IntegrityError as error:
                manifest, problem = None, str(error).partition("; fix: ")[0]
            if manifest is not None:
                self._require_same_run(folder, manifest.get("run", {}))
                return folder
            say(f"warning: {problem}: this checkpoint is passed over")
        if found:
            say(f"{self.folder}: no checkpoint verifies, so training starts from the beginning")
        return None

    @contextmanager
    def new(self, step: int) -> Iterator[Path]:
        """Fill the yielded folder; on leaving without error it is the checkpoint of that step, and older ones go."""
        with new_folder(self.folder / f"checkpoint-{step}", {"run": self.run}) as temporary:
            yield temporary
        found = self._found()
        # One of a later step did not verify when this run began, or it would not be here.
        kept = [other for other in found if other <= step][-self.keep :]
        for other in found.keys() - set(kept):
            self._remove(found[other])

    def _found(self) -> dict[int, Path]:
        """Step -> checkpoint, in the order of the steps."""
        entries = list(self.folder.iterdir()) if self.folder.is_dir() else []
        named = [(NAME.fullmatch(entry.name), entry) for entry in entries if entry.is_dir()]
        return dict(sorted((int(match[1]), entry) for match, entry in named if match))

    def _require_same_run(self, folder: Path, run: Any) -> None:
        if different := differences(run, self.run):
            raise IntegrityError(
                f"{folder}: was saved by another run, which differs in {', '.join(different)}; "
                f"fix: go back to what that run had, or delete {self.folder} to train this policy from its beginning"
            )

    def _remove(self, folder: Path) -> None:
        """Moved away whole first: deleted in its place, half of it could be seen."""
        gone = folder.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{folder.name}")
        folder.rename(gone)
        reach("checkpoint.retired", gone)
        shutil.rmtree(gone, ignore_errors=True)


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, by dotted name; with both values where they are short."""
    if isinstance(before, dict) and isinstance(now, dict):
        inside = [(key, f"{name}.{key}" if name else key) for key in sorted(before.keys() | now.keys())]
        return [d for key, path in inside for d in differences(before.get(key), now.get(key), path)]
    if before == now:
        return []
    values = f"({before!r}, now {now!r})"
    return [f"{name} {values}" if len(values) <= 60 else name]


class ResumableRun(TrainerCallback):
    """A trainer's run from its newest checkpoint to the end, saved as it goes.

    The trainer calls `save` and `load` in place of transformers' own.

    Args:
        trainer: one that has not trained yet.
        label: what the console calls the run.
    """

    def __init__(self, trainer: MODPOTrainer | OnPolicy, checkpoints: Checkpoints, label: str) -> None:
        self.checkpoints, self.label = checkpoints, label
        # Weak, for the trainer holds this: a circle would keep its optimizer in memory when it is done.
        self._trainer = cast("MODPOTrainer", weakref.proxy(trainer))
        self._interruption = Interruption()
        self._started, self._before, self._meter = monotonic(), NOTHING, Meter()
        self._progress: dict[str, Any] | None = None  # of the checkpoint that this run began with
        trainer.args.ignore_data_skip = False  # with it the data would begin anew, and the end be another
        trainer.resumable_run = self
        trainer.add_callback(self)

    def train(self, interruption: Interruption) -> bool:
        """Train until the end, or until `interruption` asks to leave: the step at hand is finished and saved then.

        Returns:
            Whether the end was reached.

        Raises:
            IntegrityError: there is a checkpoint, and it is of another run.
        """
        self._interruption = interruption
        self._started = monotonic()
        there = self.checkpoints.newest()
        with self._meter:
            self._trainer.train(resume_from_checkpoint=str(there) if there else None)
        state = self._trainer.state
        if not interruption.asked or state.global_step >= state.max_steps:
            return True
        done = "saved" if self.checkpoints.every else "not saved, as `training.save_steps: 0` says, but stopped"
        say(f"{self.label}: {done} at step {state.global_step} of {state.max_steps}")
        return False

    @property
    def cost(self) -> dict[str, float]:
        """A `Cost` for a manifest, what was before the checkpoint included; its tokens are packed ones."""
        return self._cost_now().written()

    def _cost_now(self) -> Cost:
        counted = self._before + self._meter.cost
        return replace(
            counted,
            seconds=self._before.seconds + monotonic() - self._started,
            tokens=self._trainer._total_train_tokens,
            tokens_generated=self._trainer.tokens_generated,
        )

    # --- what the trainer calls -------------------------------------------------------------------------------

    def save(self) -> None:
        """Publish a checkpoint of the step that was just finished.

        Raises:
            NumericError: a trained weight is not finite; the checkpoints before stay.
        """
        trainer, step = self._trainer, self._trainer.state.global_step
        if step >= trainer.state.max_steps:
            return  # transformers would train on from it when resumed; the finished policy is what is published
        weights = trained_tensors(trainer.model)
        if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
            raise NumericError(f"step {step}: {bad[0]} is not finite; fix: lower learning_rate")
        with self.checkpoints.new(step) as folder:
            save_file({n: t.cpu().contiguous() for n, t in weights.items()}, folder / WEIGHTS)
            trainer._save_optimizer_and_scheduler(str(folder))
            trainer._save_scaler(str(folder))
            trainer._save_rng_state(str(folder))
            trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            write_json(folder / PROGRESS, self._progress_now())

    def load(self, folder: Path) -> None:
        """Put the weights of a checkpoint into the model, and its costs here; transformers loads the rest.

        Raises:
            IntegrityError: they are not those of this model.
        """
        load_trained(self._trainer.model, folder / WEIGHTS)
        self._progress = json.loads((folder / PROGRESS).read_text("utf-8"))
        self._before = Cost.of(self._progress)
        self._trainer._total_train_tokens = self._before.tokens
        self._trainer.tokens_generated = self._before.tokens_generated

    # --- the callback -----------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._progress is not None:
            self._continue_log(self._progress)
            say(f"{self.label}: goes on from step {state.global_step} of {state.max_steps}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        reach("step.done", self.checkpoints.folder)
        every, asked = self.checkpoints.every, self._interruption.asked
        if every and (asked or state.global_step % every == 0):
            control.should_save = True
        if asked:
            control.should_training_stop = True

    def _progress_now(self) -> dict[str, Any]:
        """Costs so far, and what was measured since the last entry of the log."""
        trainer = self._trainer
        return {
            **asdict(self._cost_now()),
            "loss": trainer._tr_loss.item(),
            "metrics": trainer._metrics["train"],
            "logged_step": trainer._globalstep_last_logged,
        }

    def _continue_log(self, progress: Mapping[str, Any]) -> None:
        trainer = self._trainer
        trainer._tr_loss += progress["loss"]
        trainer._total_loss_scalar -= progress["loss"]  # the mean that transformers logs in the end is of this run
        trainer._metrics["train"].update(progress["metrics"])
        trainer._globalstep_last_logged = progress["logged_step"]


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def load_trained(model: nn.Module, path: Path) -> None:
    """Copy saved tensors into the parameters that training changes: just these, and to the bit.

    Raises:
        IntegrityError: a tensor is missing, or too much, or of another shape or number format.
    """
    own, saved = trained_tensors(model), load_file(path)
    shapes, theirs = ({n: (t.shape, t.dtype) for n, t in tensors.items()} for tensors in (own, saved))
    if odd := [name for name in sorted(own.keys() | saved.keys()) if shapes.get(name) != theirs.get(name)]:
        fix = f"delete {path.parent.parent} to train this policy from its beginning"
        raise IntegrityError(f"{path}: is of another model ({odd[0]} differs); fix: {fix}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
