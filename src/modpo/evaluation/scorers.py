"""What measures an objective on new answers: a scorer of `evaluation.rewards`, which nothing is trained on, else the
objective's own reward, also where a proxy was trained on in its place.

A policy that is trained on a learned scorer may come to please that scorer alone; another one tells.
"""

from __future__ import annotations

from collections.abc import Mapping

from modpo.data.groups import PromptGroups
from modpo.experiment.proxy import is_proxied, needs_proxies
from modpo.experiment.sections import Resolved
from modpo.rewards.batch import Reward, RewardContext, answer_batch
from modpo.rewards.loading import PROBE_ROWS, load_reward, probe, reads_model


def measuring_rewards(experiment: Resolved, trained_on: Mapping[str, Reward]) -> dict[str, Reward]:
    """The scorers that measure new answers, by objective; none for one known by pairs or a column alone.

    Args:
        trained_on: the objectives' own rewards.

    Raises:
        InputError: a reward of `evaluation.rewards` that cannot be had.
    """
    found = {**trained_on, **load_evaluation_rewards(experiment)}
    return {name: reward for name, reward in found.items() if reward.scores_new_text}


def load_evaluation_rewards(experiment: Resolved) -> dict[str, Reward]:
    """The scorers of `evaluation.rewards`, found and checked."""
    context, loaded = RewardContext.of(experiment), {}
    for name, section in experiment.evaluation.rewards.items():
        # A reward that a proxy trains for measures from here, and stands in the file where it always does.
        own = name not in experiment.asked.evaluation.rewards
        field = f"objectives.{name}.reward" if own else f"evaluation.rewards.{name}"
        loaded[name] = load_reward(section, context, where=experiment.where(field), name=name, field=field)
    return loaded


def probe_evaluation_rewards(experiment: Resolved, held_out: PromptGroups) -> None:
    """Let each scorer of `evaluation.rewards` that reads no model score something, as it will score answers.

    Raises:
        InputError, NumericError: what scoring raises.
    """
    prompts = list(held_out[:PROBE_ROWS])
    for name, reward in load_evaluation_rewards(experiment).items():
        if not reads_model(experiment.evaluation.rewards[name]):
            probe(reward, answer_batch(prompts, ["An answer."] * len(prompts)))


def is_separate(experiment: Resolved, name: str) -> bool:
    """Whether an objective is measured by another scorer than the one that is trained on."""
    given = experiment.evaluation.rewards.get(name)
    return given is not None and (is_proxied(experiment, name) or given != experiment.asked.objectives[name].reward)


def scorer_warnings(experiment: Resolved) -> list[str]:
    """Objectives that are measured by the very model that they are trained on, one line each."""
    own = [o for o in experiment.asked.objectives.values() if o.proxy is None or not needs_proxies(experiment)]
    learned = [o.name for o in own if o.reward is not None and reads_model(o.reward)]
    return [
        f"{name} is measured by the model that it is trained on, which policies may come to please without being "
        "better; `evaluation.rewards` takes another"
        for name in learned
        if not is_separate(experiment, name)
    ]
