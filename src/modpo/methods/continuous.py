"""A sweep from one training: the continuous policy, and each preference vector baked from it as a plain adapter.

<output>/continuous/<objective>/    an adapter per objective, as PEFT saves it
<output>/continuous/training_log.json, manifest.json
<output>/points/<name>/             the policy at a vector: the same files as a point that was trained alone
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base import simplex
from modpo.base.artifact import Artifact
from modpo.base.costs import Cost
from modpo.base.errors import InputError, Problem
from modpo.base.files import read_manifest
from modpo.base.progress import say
from modpo.base.simplex import Weights
from modpo.experiment.methods import CONTINUOUS
from modpo.methods.modpo import new_trainer
from modpo.methods.point import about_combined, shared_parts, train_policy
from modpo.methods.run import Maker, Run
from modpo.models.combine import combine_adapters

if TYPE_CHECKING:
    from modpo.training.continuous import ContinuousTrainer


def maker(run: Run) -> Maker:
    """Train the continuous policy if it is not there; each vector is baked from it.

    Raises:
        InputError: no adapters to steer. IntegrityError: the folder holds a policy of other data or settings.
        NumericError: a loss or gradient that is not finite.
    """
    folder = run.experiment.output_dir / CONTINUOUS
    train(run, folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    return partial(_bake, run, folder, manifest)


def train(run: Run, folder: Path) -> None:
    """Train the continuous policy, from its newest checkpoint if there is one; kept where it is finished.

    Raises:
        InputError: no adapters to steer. IntegrityError, NumericError: see `maker`.
    """
    experiment, sweep = run.experiment, run.experiment.sweep
    if experiment.lora is None:
        fix = "give `lora` its fields back: a continuous policy is one adapter per objective"
        raise InputError(Problem(experiment.where("lora"), "lora", "is null", fix))
    settings = {name: getattr(sweep, name) for name in ("concentration", "spread", "prompts_per_draw")}
    parts = {**shared_parts(experiment, run.scored), "continuous": settings}
    make = partial(_new_trainer, run, settings=settings)
    train_policy(
        run,
        folder,
        parts,
        CONTINUOUS,
        make,
        about={"spread": sweep.spread},
        save=lambda trainer, new: trainer.save_policy(new),
    )


def _new_trainer(run: Run, work: Path, settings: Mapping[str, Any]) -> ContinuousTrainer:
    from modpo.training.continuous import ContinuousConfig, ContinuousTrainer

    middle = simplex.middle(list(run.experiment.objectives))
    trainer: ContinuousTrainer = new_trainer(
        run, middle, work, kind=ContinuousTrainer, config=ContinuousConfig, more=settings
    )
    return trainer


def _bake(run: Run, policy: Path, manifest: Mapping[str, Any], weights: Weights, folder: Path) -> None:
    """The policy at a vector as a plain adapter, its cost a share of the one training."""
    point = Artifact(folder, {"continuous": manifest["key"], "weights": weights}, simplex.name(weights))
    if point.there():
        return
    experiment = run.experiment
    cost = Cost.of(manifest["cost"]).share(len(experiment.sweep.weights)).written()
    with point.making(**about_combined(experiment, weights, cost), made_of=CONTINUOUS) as new:
        scales = simplex.spread_out(weights, manifest["spread"])
        combine_adapters({policy / name: scale for name, scale in scales.items()}, new.folder)
    say(f"{point.label}: baked from the continuous policy")
