"""A reward that the data already holds: one number per response, in a field of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from modpo.base.errors import InputError, Problem
from modpo.rewards.batch import RewardBatch, check_scores


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
