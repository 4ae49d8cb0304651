"""Labels drawn from a reward, for objectives that nobody has labelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np


def draw_bradley_terry(rewards: Sequence[float | None], *, seed: int) -> list[list[int]]:
    """One label for each two responses of a prompt: [chosen, rejected] with P = sigmoid(reward difference).

    Responses without a reward are compared with none.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for a, b in combinations(range(len(rewards)), 2):
        draw, first, second = rng.random(), rewards[a], rewards[b]
        if first is None or second is None:
            continue
        prefers_a = draw < 1 / (1 + math.exp(min(second - first, 500.0)))
        pairs.append([a, b] if prefers_a else [b, a])
    return pairs
