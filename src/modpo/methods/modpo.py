"""MODPO: a training for each preference vector."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modpo.base import simplex
from modpo.base.simplex import Weights
from modpo.experiment.sections import Experiment
from modpo.methods.point import point_parts, train_policy
from modpo.methods.run import Maker, Run
from modpo.models.folders import lora_config

if TYPE_CHECKING:
    from modpo.training.config import MODPOConfig
    from modpo.training.trainer import MODPOTrainer

    Config = TypeVar("Config", bound=MODPOConfig)


def maker(run: Run) -> Maker:
    """Nothing is shared but the scores."""
    return partial(train, run)


def train(run: Run, weights: Weights, folder: Path, *, kind: type[MODPOTrainer] | None = None) -> None:
    """Train one vector, from its newest checkpoint if there is one; kept where it is finished.

    Args:
        kind: the trainer; default: MODPO's.
    """
    parts = point_parts(run, weights)
    if kind is not None:
        parts["trainer"] = kind.__name__
    make = partial(new_trainer, run, weights, kind=kind)
    train_policy(run, folder, parts, simplex.name(weights), make, about={"weights": weights})


def new_trainer(
    run: Run,
    weights: Weights,
    work: Path,
    *,
    kind: type[MODPOTrainer] | None = None,
    config: type[MODPOConfig] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Any:
    """A trainer that has not trained yet.

    Args:
        kind, config: the trainer and its configuration; default: MODPO's.
        more: fields of the configuration besides those of the experiment's training section.
    """
    from transformers import PrinterCallback

    from modpo.training.trainer import MODPOTrainer

    experiment = run.experiment
    trainer = (kind or MODPOTrainer)(
        run.reference.model,
        args=training_arguments(experiment, weights, work, kind=config, more=more),
        train_dataset=run.scored.dataset(),
        processing_class=run.reference.tokenizer,
        objectives=experiment.objectives,
        calibrations=run.scored.calibrations,
        peft_config=lora_config(experiment.lora) if experiment.lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(
    experiment: Experiment,
    weights: Weights,
    work: Path,
    *,
    kind: type[Config] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Config:
    """The experiment's training section as `MODPOConfig`, or as another kind of it with `more` fields."""
    from modpo.training.arguments import ELSEWHERE, modpo_settings, training_config
    from modpo.training.config import MODPOConfig

    more = dict(more or {})
    return training_config(
        kind or MODPOConfig,
        modpo_settings(experiment, work) | {"weights": weights} | more,
        experiment.training.arguments,
        where=experiment.where,
        field="training.arguments",
        elsewhere=ELSEWHERE | {name: f"sweep.{name}" for name in ("weights", *more)},
        values_of="training",
    )
