"""Objective k of a prompt: whose pairs are trained on at a preference vector, and which loss they get.

Every objective whose weight is above 0 enters the loss of a prompt, one by its pairs, the others by their rewards:

    k named, w_k > 0    the pairs of k, where the prompt has some
    no k named, or w_k = 0    of the objectives with a weight and pairs that leave each other one a reward, the one with
                        the largest weight
    no such k, or one whose weight is below `regression_below` while all objectives with a weight have rewards
                        regression on the weighted rewards, over every two responses (`regression_loss`)

So w = e_j is plain DPO where j has pairs, and regression where it has none.

Regression can take over before w_k is 0, where k has a reward too. A label that is sure, as one drawn from a reward
with a large scale, bounds the policy from one side only: the loss of a pair, times w_k, comes to

    max(0, margin - beta (D(chosen) - D(rejected)))

as w_k gets small. A pair whose chosen response is the worse one by the other objectives then has no gradient, every
other one pushes the chosen response up, and so objective k is learned where it hardly weighs. Labels that contradict
each other as often as the reward says would balance the two sides; regression needs no such luck.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from modpo.base.simplex import Weights

REGRESSION = -1
ROUNDING = 0.005  # weights as people write them: 0.33 is a third

Margins = Sequence[float | None]  # margin rewards of a prompt's responses, None where there is none


@dataclass(frozen=True)
class Choice:
    """What a prompt is trained on.

    Attributes:
        k: index of the primary objective among the weights; REGRESSION if there is none.
        pairs: [chosen, rejected] indices of responses. In regression, chosen is the one with the larger weighted
            reward.
    """

    k: int
    pairs: list[tuple[int, int]]


def smallest_primary_weight(regression_below: float | None, objectives: int, *, continuous: bool) -> float:
    """From which weight on the pairs of objective k are read, where there is a choice.

    If it is not given, from 0 on; of a continuous policy, whose vectors come close to the border, from the average.
    """
    if regression_below is not None:
        return regression_below
    return 1 / objectives if continuous else 0.0


def able_objectives(
    weights: Weights,
    with_pairs: Container[str],
    with_reward: Container[str],
    named: str | None = None,
    regression_below: float = 0.0,
) -> list[str]:
    """Objectives that can be k, the largest weight first: those with pairs that leave the others a reward each.

    Where all with a weight have rewards, so that regression is possible, one below `regression_below` cannot.
    """
    active = active_objectives(weights)
    candidates = [named] if named in active else active
    if _rewarded(active, with_reward):
        candidates = [name for name in candidates if weights[name] >= regression_below - ROUNDING]
    able = [name for name in candidates if name in with_pairs and _rewarded(active, with_reward, but=name)]
    return sorted(able, key=lambda name: -weights[name])


def is_trainable(
    weights: Weights, with_pairs: Container[str], with_reward: Container[str], named: str | None = None
) -> bool:
    """Whether a prompt of which all that is known at all is known can be trained on."""
    active = active_objectives(weights)
    return bool(able_objectives(weights, with_pairs, with_reward, named)) or _rewarded(active, with_reward)


def active_objectives(weights: Weights) -> list[str]:
    """Those with a weight above 0, which alone enter the loss."""
    return [name for name, weight in weights.items() if weight > 0]


def _rewarded(active: Sequence[str], with_reward: Container[str], but: str | None = None) -> bool:
    return all(name in with_reward for name in active if name != but)


def choose(
    weights: Weights,
    pairs: Mapping[str, Sequence[Sequence[int]]],
    margins: Mapping[str, Margins],
    responses: int,
    named: str | None = None,
    regression_below: float = 0.0,
    first_equal: Sequence[int] | None = None,
) -> Choice:
    """The primary objective of one prompt and the pairs it is trained on; none if too little is known of it.

    Args:
        weights: the preference vector.
        pairs: the prompt's pairs, by objective.
        margins: the prompt's margin rewards (calibrated, larger is better), by objective.
        responses: how many there are.
        named: objective k, where the experiment names it.
        regression_below: a weight of k that is too small for its pairs, where its reward is known.
        first_equal: of each response the first one with the same tokens; two such make no pair. None: all differ.
            Of `pairs` it holds already.
    """
    with_pairs = {name for name in pairs if pairs[name]}
    heavy = able_objectives(weights, with_pairs, margins, named, regression_below)
    if by_pairs := _by_pairs(heavy, weights, pairs, margins):
        return by_pairs
    regression = Choice(REGRESSION, _ordered_pairs(weights, margins, first_equal or range(responses)))
    if regression.pairs:
        return regression
    # A reward of k that lacks these responses: its pairs are better than nothing, however small its weight.
    return _by_pairs(able_objectives(weights, with_pairs, margins, named), weights, pairs, margins) or regression


def _by_pairs(
    able: Sequence[str], weights: Weights, pairs: Mapping[str, Sequence[Sequence[int]]], margins: Mapping[str, Margins]
) -> Choice | None:
    """The pairs of the first objective that has some whose margins are known."""
    names = list(weights)
    for primary in able:
        others = [name for name in names if name != primary and weights[name] > 0]
        known = [(c, r) for c, r in pairs[primary] if _known((c, r), others, margins)]
        if known:
            return Choice(names.index(primary), known)
    return None


def _known(pair: tuple[int, int], names: Sequence[str], margins: Mapping[str, Margins]) -> bool:
    """Whether both responses of a pair have a margin reward for each of the objectives."""
    return all(name in margins and margins[name][i] is not None for name in names for i in pair)


def _ordered_pairs(weights: Weights, margins: Mapping[str, Margins], first: Sequence[int]) -> list[tuple[int, int]]:
    """Every two responses that differ as tokens and whose weighted reward is known, the better one first."""
    active = active_objectives(weights)
    every_two = [
        (a, b)
        for a, b in combinations(range(len(first)), 2)
        if first[a] != first[b] and _known((a, b), active, margins)
    ]
    ordered = []
    for a, b in every_two:
        difference = sum(weights[name] * ((margins[name][a] or 0.0) - (margins[name][b] or 0.0)) for name in active)
        ordered.append((a, b) if difference >= 0 else (b, a))
    return ordered
