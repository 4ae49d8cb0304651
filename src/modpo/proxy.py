"""Proxies: rewards learned from what is known of the given answers, for methods that score answers of their own.

A rating, or the label of an annotator, is of an answer in the data; nobody can be asked about every answer that a
policy comes upon while it is trained. MODPO needs no more than the data's. Methods that sample learn a model of it
first, and may come to please the model alone (Gao et al., "Scaling Laws for Reward Model Overoptimization", ICML 2023).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from modpo.experiment.method_checks import NEW_ANSWERS, scores_new_text
from modpo.experiment.sections import Experiment, Objective, RewardSection


def as_method_needs(experiment: Experiment) -> Experiment:
    """The experiment by its proxies where its method scores answers of its own."""
    return _with_proxies(experiment) if needs_proxies(experiment.sweep.method, experiment) else experiment


def needs_proxies(method: str, experiment: Experiment) -> bool:
    """Whether a method scores answers of its own, and the experiment has proxies that score them."""
    return method in NEW_ANSWERS and any(objective.proxy for objective in experiment.objectives.values())


def _with_proxies(experiment: Experiment) -> Experiment:
    """The experiment with each objective's proxy in the place of its reward, which measures the policies.

    A proxy is more where an answer is better, and weighs as it is: neither scaled nor calibrated. `asked` is the
    experiment as it was.
    """
    objectives = {name: _by_proxy(objective) for name, objective in experiment.objectives.items()}
    measuring = {**dict(_measuring(experiment)), **experiment.evaluation.rewards}
    evaluation = replace(experiment.evaluation, rewards=measuring)
    return replace(experiment, objectives=objectives, evaluation=evaluation, asked=experiment.asked or experiment)


def naming_proxies(experiment: Experiment) -> Experiment:
    """An experiment by its proxies as a file would say it: rewards as they were, proxies as they were learned.

    Of one that is not by them, without them.
    """
    objectives = {name: _naming_proxy(experiment, name) for name in experiment.objectives}
    return replace(experiment, objectives=objectives, evaluation=(experiment.asked or experiment).evaluation)


def is_proxied(experiment: Experiment, name: str) -> bool:
    """Whether what stands as the objective's reward is its proxy."""
    asked = (experiment.asked or experiment).objectives[name]
    return asked.proxy is not None and experiment.objectives[name].proxy is None


def _naming_proxy(experiment: Experiment, name: str) -> Objective:
    own = experiment.objectives[name]
    if is_proxied(experiment, name):
        return replace((experiment.asked or experiment).objectives[name], proxy=own.reward)
    return replace(own, proxy=None)


def _by_proxy(objective: Objective) -> Objective:
    if objective.proxy is None:
        return objective
    own = replace(objective, reward=objective.proxy, proxy=None, pairs=None)
    return replace(own, maximize=True, scale=1.0, calibration="none")


def _measuring(experiment: Experiment) -> Iterator[tuple[str, RewardSection]]:
    for name, objective in experiment.objectives.items():
        if objective.proxy and objective.reward and scores_new_text(objective.reward):
            yield name, objective.reward
