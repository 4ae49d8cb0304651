"""Is a policy the optimum that it claims to be? The identity that MODPO rests on, measured on held-out answers.

At the optimum beta D(y) = sum_i w_i r_i(x, y) + a function of x (paper, section 3.1), so over two answers to a prompt

    beta (D(y) - D(y')) = sum_i w_i (r_i(y) - r_i(y'))

The regression of the left side on the right, through the origin since either answer may be called the first, has
slope 1 and R2 1. A slope near 0 says undertrained, a negative one broken; a low R2 says that the policy orders answers
by something else than the weighted rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from modpo.base.simplex import Weights

UNDERTRAINED = 0.25  # slopes below it are flagged


@dataclass(frozen=True)
class Audit:
    """The regression over `pairs` pairs of answers to `prompts` prompts."""

    slope: float
    r2: float
    pairs: int
    prompts: int
    verdict: str  # "", "undertrained" or "broken"


def audit(
    weights: Weights,
    log_ratios: Sequence[Sequence[float]],
    margins: Mapping[str, Sequence[Sequence[float]]],
    *,
    beta: float,
) -> Audit | None:
    """The audit of a policy at `weights`.

    Args:
        log_ratios: D of each answer, by prompt, nats.
        margins: calibrated margin rewards of the same answers, by objective; all with a weight are there.
        beta: of training.

    Returns:
        None where no two answers to a prompt differ in their weighted reward.
    """
    x: list[float] = []
    y: list[float] = []
    prompts = 0
    for n, ratios in enumerate(log_ratios):
        rewards = [sum(w * margins[name][n][i] for name, w in weights.items() if w > 0) for i in range(len(ratios))]
        twos = list(combinations(range(len(ratios)), 2))
        x += [rewards[a] - rewards[b] for a, b in twos]
        y += [beta * (ratios[a] - ratios[b]) for a, b in twos]
        prompts += bool(twos)
    xs, ys = np.array(x), np.array(y)
    if not len(xs) or not (xs**2).sum() > 0:
        return None
    slope = float((xs * ys).sum() / (xs**2).sum())
    spread = float((ys**2).sum())
    r2 = float((xs * ys).sum() ** 2 / ((xs**2).sum() * spread)) if spread > 0 else 0.0
    verdict = "broken" if slope < 0 else "undertrained" if slope < UNDERTRAINED else ""
    return Audit(slope, r2, len(xs), prompts, verdict)
