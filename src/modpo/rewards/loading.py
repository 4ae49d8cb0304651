"""The reward that a section of the experiment describes, found, checked and tried."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from modpo.base.errors import InputError, Problem
from modpo.data.prompt_group import plain_text
from modpo.experiment.sections import Objective, RewardSection
from modpo.rewards.batch import Reward, RewardBatch, RewardContext
from modpo.rewards.combined import Clipped, ColumnReward, WeightedSum
from modpo.rewards.function import FunctionReward

PROBE_ROWS = 8
SOURCES = ("function", "column", "reward_model", "implicit", "sum", "train")


def load_reward(
    section: RewardSection, context: RewardContext, *, where: str, name: str, field: str | None = None
) -> Reward:
    """Build an objective's reward. Models are found and checked, and read when they are first needed.

    Args:
        section: exactly one source is set.
        where: "experiment.yaml:12", what an error names.
        name: the objective.
        field: where in the experiment the section stands; default: as the objective's reward.

    Raises:
        InputError: not exactly one source; a source that cannot be had or cannot score.
    """
    reward = _source(section, context, where, name, field or f"objectives.{name}.reward")
    return reward if section.clip is None else Clipped(reward, *section.clip)


def _source(section: RewardSection, context: RewardContext, where: str, name: str, field: str) -> Reward:
    match [source for source in SOURCES if getattr(section, source) is not None]:
        case ["function"]:
            return FunctionReward(section.function or "", section.kwargs, where=where, name=name, field=field)
        case ["column"]:
            return ColumnReward(section.column or "", missing=section.missing)
        case ["reward_model"]:
            from modpo.rewards.classifier import ClassifierReward

            return ClassifierReward(section, context, where=where, name=name, field=field)
        case ["implicit"]:
            from modpo.rewards.implicit import ImplicitReward

            return ImplicitReward(section, context, where=where, name=name, field=field)
        case ["sum"]:
            parts = section.sum or []
            return WeightedSum(
                [(p.weight, load_reward(p, context, where=where, name=name, field=field)) for p in parts]
            )
        case ["train"]:
            problem, fix = "is not trained yet", "train the rewards first"
        case _:
            problem, fix = "needs exactly one source", f"give one of {', '.join(SOURCES)}"
    raise InputError(Problem(where, field, problem, fix))


def probe(reward: Reward, batch: RewardBatch) -> Sequence[float | None]:
    """Score the first rows of a batch twice, before anything long is started.

    Returns:
        Their scores, at most `PROBE_ROWS`.

    Raises:
        InputError, NumericError: what the reward itself raises; InputError when a row's scores differ.

    Warns:
        UserWarning: every probed response has the same score.
    """
    few = batch.rows(0, PROBE_ROWS)
    first, second = reward(few), reward(few)
    fix = "remove or seed its randomness, so that a cached score can be trusted"
    differing = [entry for entry in zip(few.where, first, second, strict=True) if entry[1] != entry[2]]
    if differing:
        problem = "not deterministic: it scored the same response {!r}, then {!r}"
        raise InputError([Problem(place, "reward", problem.format(a, b), fix) for place, a, b in differing])
    if len({plain_text(response) for response in few.responses}) > 1 and len(set(first)) == 1:
        scored = f"{'none' if first[0] is None else format(first[0], 'g')} for each of the first {len(few)} responses"
        warnings.warn(f"{few.where[0]}: reward is {scored}: a constant reward moves nothing", stacklevel=2)
    return first


def quick_rewards(objectives: Mapping[str, Objective], rewards: Mapping[str, Reward]) -> dict[str, Reward]:
    """Those of some objectives' rewards that read no language model."""
    slow = {name for name, o in objectives.items() if o.reward is not None and reads_model(o.reward)}
    return {name: reward for name, reward in rewards.items() if name not in slow}


def reads_model(section: RewardSection) -> bool:
    """Whether scoring reads a language model, which takes long; a reward that is still to be trained will be one."""
    named = (section.reward_model, section.implicit, section.train)
    return any(source is not None for source in named) or any(map(reads_model, section.sum or []))
