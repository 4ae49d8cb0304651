"""A point of a sweep: the policy of one preference vector, as it lies on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modpo.base.costs import NOTHING, Cost
from modpo.base.simplex import Weights
from modpo.front.schema import REFERENCE
from modpo.policies.best_of_n import BestOfN, read_best_of_n


@dataclass(frozen=True)
class SweptPoint:
    """A finished point of a sweep, or the reference policy from which all start."""

    name: str
    weights: Weights | None = None  # None: the reference
    folder: Path | None = None  # its adapter, or its model where all weights were trained
    files: Mapping[str, str] = field(default_factory=dict)  # sha256 of each file
    cost: Cost = NOTHING  # of training it, or its share of the trainings that it is combined from
    combined_from: str | None = None  # the folder beside `points` of those trainings, if it has none of its own

    @property
    def best_of_n(self) -> BestOfN | None:
        """How it chooses among answers of the reference; None where it has a policy of its own."""
        return read_best_of_n(self.folder) if self.folder is not None else None


REFERENCE_POINT = SweptPoint(REFERENCE)
