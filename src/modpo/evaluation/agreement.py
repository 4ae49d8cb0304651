"""How far a policy orders held-out answers as an objective does: what is measured where no new answer can be scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

ROUNDING = 1e-6  # log-probs of one model read twice differ by rounding: a difference that small is a tie


def agreement(ratios: Sequence[Sequence[float]], pairs: Iterable[Sequence[Sequence[int]]]) -> list[float]:
    """Share of each prompt's pairs in which the policy prefers the chosen answer, (N,); 1/2 where it has none.

    The policy prefers the answer with the larger log pi / pi_ref; the reference prefers none: 1/2.

    Args:
        ratios: log pi - log pi_ref of each prompt's answers, nats. pairs: (chosen, rejected), by prompt.
    """
    shares = []
    for own, labels in zip(ratios, pairs, strict=True):
        wins = [_win(own[chosen] - own[rejected]) for chosen, rejected in labels]
        shares.append(float(np.mean(wins)) if wins else 0.5)
    return shares


def ordered_pairs(scores: Sequence[float | None], sign: float) -> list[tuple[int, int]]:
    """Every two answers whose numbers are there and differ, the better one first."""
    known = [(i, sign * score) for i, score in enumerate(scores) if score is not None]
    return [(a, b) for a, x in known for b, y in known if x > y]


def _win(difference: float) -> float:
    return 0.5 if abs(difference) <= ROUNDING else float(difference > 0)
