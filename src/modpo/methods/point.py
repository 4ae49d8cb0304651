"""What decides a policy, and whether it is there already: the same for every method."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modpo.errors import IntegrityError
from modpo.experiment.sections import Experiment
from modpo.methods import Run
from modpo.progress import say
from modpo.publish import read_manifest
from modpo.scoring import ScoredData
from modpo.simplex import Weights


def shared_parts(experiment: Experiment, scored: ScoredData) -> dict[str, Any]:
    """What decides the policies of all vectors, by name: data, rewards, training."""
    return {
        "data": {
            "tokens": scored.tokens.key,
            "reference": scored.reference.key,
            **{f"pairs/{name}": column.key for name, column in scored.pairs.items()},
            **{f"reward/{name}": column.key for name, column in scored.rewards.items()},
        },
        "seed": experiment.seed,
        "training": experiment.training.deciding(),
        "lora": asdict(experiment.lora) if experiment.lora else None,
        "objectives": {name: [o.sign, o.pairs] for name, o in experiment.objectives.items()},
        "calibrations": {name: asdict(c) for name, c in scored.calibrations.items()},
    }


def point_parts(run: Run, weights: Weights) -> dict[str, Any]:
    """What decides the policy of one vector, by name."""
    return {**shared_parts(run.experiment, run.scored), "weights": weights}


def is_there(folder: Path, key: str, label: str) -> bool:
    """Whether `folder` holds what `key` stands for; then it is kept, and that is said.

    Raises:
        IntegrityError: it holds something else, or was changed.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    if manifest.get("key") != key:
        raise IntegrityError(f"{folder}: holds a policy of other data or settings; fix: delete it and run again")
    shutil.rmtree(work_folder(folder), ignore_errors=True)  # where the run ended between the two
    say(f"{label}: finished before, kept")
    return True


def work_folder(folder: Path) -> Path:
    """Where the checkpoints of a policy lie until it is finished."""
    return folder.parent / f".work-{folder.name}"
