"""What every method starts from and gives: the same face for all.

A method's module has `maker(run)`, which makes what all vectors share and gives a function that writes the policy of
one vector into its folder. It may have `check_settings(experiment, weights)`, for what only its trainer knows.
Everything around it (folders, locks, failures, evaluation, the report) is the same for all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from modpo.base.simplex import Weights
from modpo.data.groups import PromptGroups
from modpo.experiment.methods import Method
from modpo.experiment.sections import Experiment, Resolved
from modpo.models.reference import ReferenceModel
from modpo.rewards.batch import Reward
from modpo.scored.data import ScoredData

Maker = Callable[[Weights, Path], None]


@dataclass(frozen=True)
class Run:
    """What every method starts from."""

    experiment: Resolved
    scored: ScoredData
    reference: ReferenceModel
    prompts: PromptGroups  # the training data, not tokenized
    rewards: Mapping[str, Reward]  # the scorer of each objective that has one


def maker(run: Run) -> Maker:
    """The maker of the experiment's method, everything that its vectors share made.

    Raises:
        IntegrityError: the folder holds something of other data or settings.
        NumericError: a loss or gradient of what is shared is not finite.
    """
    made: Maker = _module(run.experiment.method).maker(run)
    return made


def check_settings(experiment: Experiment, weights: Weights) -> None:
    """Check what only the method's trainer knows of the settings, before a model is read.

    Raises:
        InputError: settings that the trainer refuses, or that leave the method nothing to work with.
    """
    check = getattr(_module(experiment.method), "check_settings", None)
    if check is not None:
        check(experiment, weights)


def _module(method: Method) -> ModuleType:
    return importlib.import_module(f"modpo.methods.{method.module}")
