"""MODPO: a training for each preference vector."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modpo.base import simplex
from modpo.base.errors import InputError, Problem
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
    from modpo.models.folders import device
    from modpo.training.config import MODPOConfig

    settings = experiment.training.deciding()
    arguments = settings.pop("arguments")
    settings["activation_checkpointing"] = settings.pop("gradient_checkpointing")  # transformers' new name for it
    defaults = {
        "bf16": experiment.model.dtype == "bfloat16",
        "fp16": experiment.model.dtype == "float16",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": device() != "cpu",
    }
    try:
        return (kind or MODPOConfig)(
            output_dir=str(work),
            weights=weights,
            seed=experiment.seed,
            max_length=experiment.data.max_length,
            max_prompt_length=experiment.data.max_prompt_length,
            **(defaults | settings | arguments | dict(more or {})),
        )
    except (TypeError, ValueError) as error:  # names and values that only transformers knows
        where, fix = experiment.where("training"), "see the fields of trl.DPOConfig"
        raise InputError(Problem(where, "training", str(error).splitlines()[0], fix)) from error
