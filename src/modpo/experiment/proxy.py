"""Proxies: rewards learned from what is known of the given answers, for methods that score answers of their own.

A rating, or the label of an annotator, is of an answer in the data; nobody can be asked about every answer that a
policy comes upon while it is trained. MODPO needs no more than the data's. Methods that sample learn a model of it
first, and may come to please the model alone (Gao et al., "Scaling Laws for Reward Model Overoptimization", ICML 2023).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from modpo.experiment.methods import METHODS
from modpo.experiment.objectives import Objective
from modpo.experiment.sections import Experiment, Resolved

REWARD, PROXY = "reward", "proxy"  # what an objective is scored by

AnExperiment = TypeVar("AnExperiment", bound=Experiment)


def needs_proxies(experiment: Experiment) -> bool:
    """Whether the experiment's method, or one of those that it compares, scores answers of its own."""
    methods = experiment.comparison.methods if experiment.comparison else [experiment.sweep.method]
    return any(METHODS[method].new_answers for method in methods)


def without_proxies(experiment: AnExperiment) -> AnExperiment:
    """The experiment of a method that has no use for them."""
    objectives = {name: replace(objective, proxy=None) for name, objective in experiment.objectives.items()}
    return replace(experiment, objectives=objectives)


def by_proxies(experiment: Resolved) -> Resolved:
    """The experiment with each objective's proxy in the place of its reward, which goes on measuring the policies.

    More of a proxy is better, and it weighs as it is: neither scaled nor calibrated.
    """
    rewards = {name: o.reward for name, o in experiment.objectives.items() if o.proxy and o.reward}
    kept = {name: reward for name, reward in rewards.items() if reward.scores_new_text}
    evaluation = replace(experiment.evaluation, rewards={**kept, **experiment.evaluation.rewards})
    objectives = {name: _by_proxy(objective) for name, objective in experiment.objectives.items()}
    return replace(experiment, objectives=objectives, evaluation=evaluation)


def is_proxied(experiment: Resolved, name: str) -> bool:
    """Whether a proxy stands as the objective's reward."""
    return experiment.asked.objectives[name].proxy is not None and experiment.objectives[name].proxy is None


def _by_proxy(objective: Objective) -> Objective:
    if objective.proxy is None:
        return objective
    own = replace(objective, reward=objective.proxy, proxy=None, pairs=None)
    return replace(own, maximize=True, scale=1.0, calibration="none")
