"""The checkpoints of a training run on disk, for exact resume (`modpo.training.resumable`).

    <folder>/checkpoint-<step>/    trained weights, optimizer, schedule, random numbers, place in the data, manifest

A checkpoint appears whole or not at all, is verified before it is used, and is refused where it is of another run.
transformers' own files are read with `weights_only`, as it does.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modpo.base.errors import IntegrityError
from modpo.base.fault_points import reach
from modpo.base.files import new_folder, read_manifest, remove_leftovers
from modpo.base.progress import say

NAME = re.compile(r"checkpoint-(\d+)")
WEIGHTS = "trained.safetensors"  # every trained tensor, by its name in the model
PROGRESS = "progress.json"  # what transformers' own state leaves out
VERSIONED = ("torch", "transformers", "trl", "peft")


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
        """The newest checkpoint that verifies; each one passed over is reported. Call it under the folder's lock.

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
                if different := differences(manifest.get("run", {}), self.run):
                    fix = (
                        f"go back to what that run had, or delete {self.folder} to train this policy from its beginning"
                    )
                    problem = f"was saved by another run, which differs in {', '.join(different)}"
                    raise IntegrityError(f"{folder}: {problem}; fix: {fix}")
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
            # Moved away whole first: deleted in its place, half of it could be seen.
            gone = self.folder / f".tmp-{uuid.uuid4().hex[:8]}-{found[other].name}"
            found[other].rename(gone)
            reach("checkpoint.retired", gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _found(self) -> dict[int, Path]:
        """Step -> checkpoint, in the order of the steps."""
        named = [(NAME.fullmatch(entry.name), entry) for entry in self.folder.glob("checkpoint-*/")]
        return dict(sorted((int(match[1]), entry) for match, entry in named if match))


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """The dotted names under which two JSON values differ, with both values where they are short."""
    if isinstance(before, dict) and isinstance(now, dict):
        inside = [(key, f"{name}.{key}" if name else key) for key in sorted(before.keys() | now.keys())]
        return [d for key, path in inside for d in differences(before.get(key), now.get(key), path)]
    if before == now:
        return []
    values = f"({before!r}, now {now!r})"
    return [f"{name} {values}" if len(values) <= 60 else name]


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name, each of the shape that it has in the model."""
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
