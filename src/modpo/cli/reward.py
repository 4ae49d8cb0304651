"""`modpo reward`: rewards learned from pairs. `modpo sweep` runs it by itself."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from modpo.base.errors import InputError, Problem
from modpo.cli.experiment_arguments import add_experiment_arguments, experiment_of

HELP = "train the rewards that are learned from pairs"


def add_arguments(parser: ArgumentParser) -> None:
    """An experiment."""
    add_experiment_arguments(parser)


def run(args: Namespace) -> int:
    """Train the rewards and proxies of all objectives that have `train`, after the stages that they build on.

    Raises:
        InputError: no objective has a reward to train.
    """
    experiment = experiment_of(args)
    objectives = experiment.objectives.values()
    rewards = [reward for objective in objectives for reward in (objective.reward, objective.proxy)]
    if not any(reward.train for reward in rewards if reward is not None):
        fix = "give an objective `reward: {train: {kind: reward_model}}`, or `kind: implicit`"
        raise InputError(Problem(experiment.where("objectives"), "objectives", "none has a reward to train", fix))

    from modpo.pipeline.stages import prepare

    prepare(experiment, proxies=True)
    return 0
