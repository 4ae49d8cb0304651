"""What an inspection has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modpo.data.groups import PromptGroups
from modpo.data.prompt_group import Pair
from modpo.experiment.sections import Experiment
from modpo.forward.packing import GroupSpan
from modpo.inspection.cost import ExpectedCost
from modpo.inspection.reward_statistics import RewardStatistics
from modpo.inspection.token_statistics import Reading, TokenStatistics


@dataclass(frozen=True)
class Example:
    """One prompt group as it lies in a packed row."""

    where: str
    prompt: str
    responses: list[str]  # with their end
    ends: list[str]  # how each end is spelled; "" where max_length cut it off
    before: list[str]  # the last tokens of the prompt, one by one
    after: list[str]  # the first tokens of the first response
    span: GroupSpan
    pairs: Sequence[Pair]  # at the vector in the middle of the sweep


@dataclass(frozen=True)
class Inspection:
    """Everything that `modpo inspect` shows."""

    experiment: Experiment
    train: PromptGroups
    held_out: PromptGroups
    sampled: int  # groups behind what follows
    tokens: TokenStatistics
    uncut_length: int  # the max_length that would cut nothing
    reading: Reading
    example: Example
    rewards: Mapping[str, RewardStatistics]
    correlations: Mapping[tuple[str, str], float]
    cost: ExpectedCost | None  # None if the sample has no pair
    warnings: Sequence[str]
