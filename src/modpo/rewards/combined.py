"""Rewards that only calculate: a column of the data, a reward clipped, rewards added up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from modpo.base.errors import InputError, Problem
from modpo.rewards.batch import Reward, RewardBatch, check_scores


@dataclass(frozen=True)
class ColumnReward:
    """Reads `batch.columns[column]`.

    The identity is the column's name and whether it may have gaps: its values are content of the data, by which the
    cache is keyed. What becomes of a gap is `modpo.scored.calibration`'s.

    Args:
        missing: "error": every response has a number. "drop" or "mean": a gap is None.
    """

    column: str
    missing: str = "error"
    scores_new_text: ClassVar[bool] = False

    @property
    def identity(self) -> dict[str, Any]:
        gaps = {"gaps": True} if self.missing != "error" else {}
        return {"column": self.column, **gaps}

    def __call__(self, batch: RewardBatch) -> list[float | None]:
        """Scores, (B,).

        Raises:
            InputError: a row lacks the number and must not, or holds something else. NumericError: NaN or infinity.
        """
        values = batch.columns.get(self.column, [None] * len(batch))
        fix = "give every response a number in this field, set `missing`, or use a reward function"
        gaps = [i for i, value in enumerate(values) if value is None]
        if gaps and self.missing == "error":
            raise InputError([Problem(batch.where[i], self.column, "no number for this response", fix) for i in gaps])
        given = [i for i, value in enumerate(values) if value is not None]
        numbers = check_scores([values[i] for i in given], batch.only(given), field=self.column, fix=fix)
        scores = dict(zip(given, numbers, strict=True))
        return [scores.get(i) for i in range(len(batch))]

    def release(self) -> None:
        """There is nothing to forget."""


@dataclass(frozen=True)
class Clipped:
    """`min(max(reward, low), high)`. A gap stays a gap.

    Raises:
        ValueError: no number lies in the interval.
    """

    reward: Reward
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"no number lies between {self.low} and {self.high}")

    @property
    def identity(self) -> dict[str, Any]:
        return {"clip": [float(self.low), float(self.high)], "reward": self.reward.identity}

    @property
    def scores_new_text(self) -> bool:
        return self.reward.scores_new_text

    def __call__(self, batch: RewardBatch) -> list[float | None]:
        """Scores in [low, high], (B,)."""
        return [None if s is None else float(min(max(s, self.low), self.high)) for s in self.reward(batch)]

    def release(self) -> None:
        self.reward.release()


@dataclass(frozen=True)
class WeightedSum:
    """sum_j weight_j * reward_j. Where a part has a gap, so has the sum.

    Args:
        parts: weights and rewards, at least one.

    Raises:
        ValueError: no part, or a weight that is not finite.
    """

    parts: Sequence[tuple[float, Reward]]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a sum needs at least one reward")
        if not all(math.isfinite(weight) for weight, _ in self.parts):
            raise ValueError(f"weights must be finite: {[weight for weight, _ in self.parts]}")

    @property
    def identity(self) -> dict[str, Any]:
        return {"sum": [{"weight": float(weight), "reward": reward.identity} for weight, reward in self.parts]}

    @property
    def scores_new_text(self) -> bool:
        return all(reward.scores_new_text for _, reward in self.parts)

    def __call__(self, batch: RewardBatch) -> list[float | None]:
        """Scores, (B,)."""
        columns = [[None if s is None else weight * s for s in reward(batch)] for weight, reward in self.parts]
        return [None if None in terms else float(sum(terms)) for terms in zip(*columns, strict=True)]

    def release(self) -> None:
        for _, reward in self.parts:
            reward.release()
