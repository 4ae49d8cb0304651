"""How the policy at a preference vector comes about: one method a file, each with the same face.

A method's module has `maker(run)`, which makes what all vectors share and gives a function that writes the policy of
one vector into its folder. Everything around it (folders, locks, failures, evaluation, the report) is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from modpo.experiment.sections import Experiment
from modpo.simplex import Weights

if TYPE_CHECKING:
    from modpo.data.groups import PromptGroups
    from modpo.reference import ReferenceModel
    from modpo.rewards import Reward
    from modpo.scored_data import ScoredData

METHODS = ("modpo", "morlhf", "rlhf", "soups", "loss_weighting", "best_of_n", "dpo")  # `sweep.method`

Maker = Callable[[Weights, Path], None]


@dataclass(frozen=True)
class Run:
    """What every method starts from."""

    experiment: Experiment
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
    made: Maker = _module(run.experiment).maker(run)
    return made


def check_settings(experiment: Experiment, weights: Weights) -> None:
    """Check what only the method's trainer knows of the settings, before a model is read.

    Raises:
        InputError: settings that the trainer refuses, or that leave the method nothing to work with.
    """
    check = getattr(_module(experiment), "check_settings", None)
    if check is not None:
        check(experiment, weights)


def _module(experiment: Experiment) -> ModuleType:
    from modpo.methods import best_of_n, continuous, loss_weighting, modpo, morlhf, soups

    if experiment.sweep.mode == "continuous":
        return continuous
    modules = {
        "modpo": modpo,
        "morlhf": morlhf,
        "rlhf": morlhf,  # at the unit vectors
        "soups": soups,
        "loss_weighting": loss_weighting,
        "best_of_n": best_of_n,
        "dpo": loss_weighting,  # all weight on one objective's pairs
    }
    return modules[experiment.sweep.method]
