"""The scorer of an experiment, and its rewards."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from modpo.data.loading import load_groups
from modpo.experiment.proxy import PROXY, REWARD, is_proxied
from modpo.experiment.sections import (
    Experiment,
    Resolved,
    RewardSection,
    resolved,
)
from modpo.models.dtype_choice import with_dtype
from modpo.models.reference import Reference, ReferenceModel
from modpo.rewards.batch import Reward, RewardContext
from modpo.rewards.loading import load_reward
from modpo.scored.calibrator import AnswerSettings
from modpo.scored.data import ScoredData
from modpo.scored.scorer import Scorer

if TYPE_CHECKING:
    pass


def load_rewards(experiment: Resolved) -> dict[str, Reward]:
    """The scorer of every objective that has one, found and checked."""
    return {
        name: _load(experiment, name, objective.reward, PROXY if is_proxied(experiment, name) else REWARD)
        for name, objective in experiment.objectives.items()
        if objective.reward is not None
    }


def load_ready_rewards(experiment: Experiment) -> dict[str, Reward]:
    """`load_rewards` without those that are still to be trained."""
    ready = {n: o for n, o in experiment.objectives.items() if o.reward is None or o.reward.train is None}
    return load_rewards(resolved(replace(experiment, objectives=ready)))


def load_proxies(experiment: Experiment) -> dict[str, Reward]:
    """The proxy of every objective that has one that is not to be trained, found and checked."""
    return {
        name: _load(experiment, name, objective.proxy, PROXY)
        for name, objective in experiment.objectives.items()
        if objective.proxy is not None and objective.proxy.train is None
    }


def _load(experiment: Experiment, name: str, section: RewardSection, role: str) -> Reward:
    context, where = RewardContext.of(experiment), experiment.where(f"objectives.{name}")
    return load_reward(section, context, where=where, name=name, field=f"objectives.{name}.{role}")


def experiment_scorer(experiment: Experiment, reference: Reference | None = None) -> Scorer:
    """The scorer that an experiment describes."""
    sampled = experiment.sample is not None  # then the data are the reference's own answers
    return Scorer(
        reference=reference or ReferenceModel.of(experiment),
        rewards=load_rewards(resolved(experiment)),
        context=RewardContext.of(experiment),
        label_sets=experiment.label_sets,
        objectives=experiment.objectives,
        answers=None if sampled else AnswerSettings(),
        where=experiment.where,
    )


def score_experiment(experiment: Experiment) -> ScoredData:
    """Score an experiment's training data into its cache; what is there already is kept."""
    train, _ = load_groups(experiment, keep=True)
    experiment = with_dtype(experiment)
    return experiment_scorer(experiment).score(train)
