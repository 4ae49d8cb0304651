"""What is known of the data once it is scored: columns on disk, calibrations, and the cost of all of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modpo.base.costs import Cost
from modpo.scored.calibration import Calibration
from modpo.scored.columns import Column, fields_of, side_by_side

if TYPE_CHECKING:
    from datasets import Dataset

# Columns of the data set are called after their objective: "pairs/helpful", "reward/concise".
PAIRS_PREFIX = "pairs/"
REWARD_PREFIX = "reward/"

Costs = dict[str, Cost | None]  # of each stage, by name; None where it was not recorded


@dataclass(frozen=True)
class ScoredData:
    """Prompt groups with everything known of them, as columns on disk."""

    tokens: Column
    reference: Column
    pairs: dict[str, Column]  # by objective
    rewards: dict[str, Column]  # by objective
    calibrations: dict[str, Calibration] = field(default_factory=dict)  # of the rewards, by objective
    fitting: Costs = field(default_factory=dict)  # the cost of calibrating them

    def costs(self) -> Costs:
        """The cost of everything from scratch; a column that serves twice is counted once."""
        named = {"tokens": self.tokens, "reference log-probs": self.reference}
        named |= {f"pairs {name}": column for name, column in self.pairs.items()}
        named |= {f"reward {name}": column for name, column in self.rewards.items()}
        once = {column.folder: stage for stage, column in reversed(named.items())}  # the first of its stages
        return {stage: named[stage].cost for stage in named if stage in once.values()} | self.fitting

    def dataset(self) -> Dataset:
        """One memory-mapped row a prompt group, verified: what `MODPOTrainer` trains on.

        Fields: `prompt_ids`, `responses_ids`, `first_equal`, `ref_logps`, `pairs/<objective>` and `reward/<objective>`.
        """
        named = [(self.tokens, {field: field for field in fields_of("tokens")})]
        named += [(self.reference, {"ref_logps": "ref_logps"})]
        named += [(column, {"pairs": PAIRS_PREFIX + name}) for name, column in self.pairs.items()]
        named += [(column, {"scores": REWARD_PREFIX + name}) for name, column in self.rewards.items()]
        return side_by_side(*(column for column, _ in named), names=[fields for _, fields in named])
