"""Best of n: of n answers of the reference policy the one with the largest weighted reward. Nothing is trained.

    KL(best of n || reference) <= log n - (n - 1) / n

with equality where no two answers have the same reward (Beirami et al., "Theoretical guarantees on the best-of-n
alignment policy", arXiv 2401.01879). The price is paid at every answer: n are sampled and scored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modpo.base.decode import decode
from modpo.base.simplex import Weights

FILE = "best_of_n.json"


@dataclass(frozen=True)
class BestOfN:
    """What the folder of such a policy says."""

    n: int
    weights: Weights

    @property
    def kl_bound(self) -> float:
        """The most that it can differ from the reference, nats per answer."""
        return math.log(self.n) - (self.n - 1) / self.n

    def choose(self, margins: Mapping[str, Sequence[float]]) -> list[int]:
        """Of every n answers that follow one another the best one's index, the first of those that are as good.

        Args:
            margins: calibrated rewards of M answers with their direction, by objective; M is a multiple of n.
        """
        active = [(weight, margins[name]) for name, weight in self.weights.items() if weight > 0]
        sums = [sum(weight * scores[i] for weight, scores in active) for i in range(len(active[0][1]))]
        return [max(range(start, start + self.n), key=sums.__getitem__) for start in range(0, len(sums), self.n)]


def read_best_of_n(folder: Path) -> BestOfN | None:
    """How a point's folder decodes, None where it holds a policy of its own."""
    path = folder / FILE
    return decode(BestOfN, json.loads(path.read_text("utf-8"))) if path.is_file() else None
