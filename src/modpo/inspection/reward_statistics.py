"""What the objectives' rewards look like before they are trained on: spread, agreement with the pairs, correlation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from modpo.data.prompt_group import Pair
from modpo.experiment.sections import Objective
from modpo.scored.calibration import Calibration, fill_of

DROWNS = 20.0  # one reward's scaled spread above another's from which on the other hardly counts


@dataclass(frozen=True)
class RewardStatistics:
    """One objective's raw reward over all responses of some groups, and its margins over their pairs."""

    mean: float
    sd: float  # of these responses, not of a population
    minimum: float
    maximum: float
    agreement: float | None  # share of pairs whose chosen response is the better one by this reward
    ties: float | None  # share of pairs with two equal rewards; both None without pairs


def margin_rewards(objective: Objective, scores: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """The margin rewards of some groups, calibrated on these responses, without asking the reference policy for any.

    `bradley_terry` is left to training, which has all pairs: its rewards stay raw here.
    """
    known = [score for group in scores for score in group if score is not None]
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    standard = objective.calibration == "standardise" and deviation > 0
    calibration = Calibration(factor=1 / deviation if standard else 1.0, fill=fill_of(objective, known))
    return [[calibration.apply(score, objective.sign) for score in group] for group in scores]


def reward_statistics(
    scores: Sequence[Sequence[float | None]], pairs: Sequence[Sequence[Pair]], sign: float
) -> RewardStatistics:
    """Statistics of one objective.

    Args:
        scores: raw reward of each response, by group; None where there is none. pairs: of the same groups.
        sign: the objective's `sign`, so that a better response has the larger product.
    """
    flat = np.array([score for group in scores for score in group if score is not None], dtype=float)
    both = [(group[c], group[r]) for group, p in zip(scores, pairs, strict=True) for c, r in p]
    margins = np.array([sign * (c - r) for c, r in both if c is not None and r is not None])
    return RewardStatistics(
        mean=float(flat.mean()),
        sd=float(flat.std()),
        minimum=float(flat.min()),
        maximum=float(flat.max()),
        agreement=float((margins > 0).mean()) if len(margins) else None,
        ties=float((margins == 0).mean()) if len(margins) else None,
    )


def correlations(
    scores: Mapping[str, Sequence[Sequence[float | None]]], signs: Mapping[str, float]
) -> dict[tuple[str, str], float]:
    """Pearson's correlation over all responses of each two objectives, counted in the direction that is better.

    1: what one objective wants is what the other wants. -1: they are opposed. NaN beside a constant reward.
    """
    # A gap becomes NaN.
    flat = {n: signs[n] * np.array([score for group in scores[n] for score in group], dtype=float) for n in scores}
    return {(a, b): _correlation(flat[a], flat[b]) for a, b in combinations(scores, 2)}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:  # constant: only rounding would be correlated
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def reward_warnings(
    objectives: Mapping[str, Objective], statistics: Mapping[str, RewardStatistics], in_loss: Sequence[str]
) -> list[str]:
    """What is wrong with the rewards, one line each.

    Args:
        in_loss: the objectives whose reward's scale matters: the margins, and one that pairs are drawn from.
    """
    constant = [name for name, s in statistics.items() if s.minimum == s.maximum]
    found = [
        f"{name}: every response has the reward {statistics[name].mean:g}: a constant reward moves nothing"
        for name in constant
    ]
    found += [
        f"{name}: both responses of every pair have the same reward: this margin moves nothing"
        for name, s in statistics.items()
        if name not in constant and s.ties == 1
    ]
    varying = [name for name in in_loss if name in statistics and name not in constant]
    if len(varying) < 2:
        return found
    spread = {name: margin_spread(objectives[name], statistics[name].sd) for name in varying}
    largest = max(varying, key=spread.__getitem__)
    return found + [_drowns(largest, name, spread) for name in varying if spread[largest] > DROWNS * spread[name]]


def margin_spread(objective: Objective, sd: float) -> float:
    """Standard deviation of the margin reward, from that of the raw reward."""
    return objective.scale * (1.0 if objective.calibration == "standardise" else sd)


def _drowns(large: str, small: str, spread: Mapping[str, float]) -> str:
    return (
        f"{large} drowns {small}: their margin rewards have standard deviations {spread[large]:.3g} and "
        f"{spread[small]:.3g}; set `scale` so that one unit of each is worth as much"
    )
