"""What a comparison says: each method's hypervolume, costs and mean front, with intervals over seeds and prompts.

A hypervolume is the one of `front.json`: of a front's mean scores, down to the reference point that the reference
policy's scores give on the same held-out prompts (`default_reference_point`). What a front gains on the
reference policy without giving up any objective, its hypervolume above that policy's own mean scores, stands beside it:
a policy at the end of a front, which trades one objective for another, adds nothing there.

The intervals are percentile bootstraps: each resample draws prompts and seeds, the same ones for every method, since
all of them answer the same prompts with the same random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modpo.base.simplex import Weights
from modpo.evaluation.evaluate import SCORES
from modpo.front.ledger import Ledger, read_ledger
from modpo.front.pareto import Score
from modpo.front.schema import Front, FrontObjective

BASELINE = "modpo"  # what the others' hypervolumes are divided by


@dataclass(frozen=True)
class ComparedPoint:
    """A method at one preference vector."""

    weights: Weights
    scores: dict[str, Score]  # raw rewards
    kl: Score  # from the reference policy, nats per answer


@dataclass(frozen=True)
class MethodResult:
    """A method, mean over its seeds."""

    hypervolume: Score
    hypervolume_by_seed: dict[int, float]
    hypervolume_above_reference: Score  # measured from the reference policy's mean scores
    cost_seconds: float  # of the whole front, from scratch
    cost_tokens: float  # trained on
    tokens_generated: float
    forward_passes: float
    backward_passes: float
    peak_memory_bytes: int  # the most of all seeds
    device_hours_per_model: float
    seeds: int  # how many came to their end
    points: list[ComparedPoint]


@dataclass(frozen=True)
class FailedSweep:
    """A method that failed with a seed, and why."""

    method: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Everything `comparison.json` says."""

    methods: dict[str, MethodResult]
    objectives: list[FrontObjective]
    reference_point: dict[str, float]  # from which hypervolumes are measured
    reference_scores: dict[str, float]  # the reference policy's means
    hypervolume_ratio: dict[str, Score]  # to that of `modpo`, over the seeds that both have
    prompts: int  # held out
    confidence: float  # of the intervals
    seeds: list[int] = field(default_factory=list)  # that were asked for
    failed: list[FailedSweep] = field(default_factory=list)
    command: str = ""


def compare(fronts: Mapping[str, Mapping[int, Front]], *, resamples: int, confidence: float) -> Comparison:
    """Compare methods whose fronts have the same vectors and were measured alike.

    Args:
        fronts: by method and seed; at least one. In their folders are `scores.jsonl` and `ledger.json`.
        resamples, confidence: of the bootstrap.
    """
    some = next(front for of_method in fronts.values() for front in of_method.values())
    objectives = [objective.name for objective in some.objectives]
    resampled = {m: _Resampled.of(list(of.values()), resamples, confidence) for m, of in fronts.items()}
    samples = _samples(some)  # (1 + P, N, K + 1)
    return Comparison(
        methods={m: _method(list(of), list(of.values()), resampled[m]) for m, of in fronts.items()},
        objectives=some.objectives,
        reference_point=some.hypervolume.reference_point,
        reference_scores=dict(zip(objectives, samples[0].mean(axis=0).tolist(), strict=False)),
        hypervolume_ratio=_ratios(fronts, resampled),
        prompts=samples.shape[1],
        confidence=confidence,
    )


@dataclass(frozen=True)
class _Resampled:
    """The fronts of S seeds, B times with other prompts. C is the objectives, then KL."""

    volumes: np.ndarray  # (S,)
    drawn_volumes: np.ndarray  # (B, S)
    gains: np.ndarray  # (S,), hypervolumes above the reference policy
    drawn_gains: np.ndarray  # (B, S)
    means: np.ndarray  # (P, C), over seeds
    drawn_means: np.ndarray  # (B, S, P, C)
    confidence: float

    @classmethod
    def of(cls, fronts: Sequence[Front], resamples: int, confidence: float) -> _Resampled:
        samples = np.stack([_samples(front) for front in fronts])  # (S, 1 + P, N, C)
        maximize = [objective.maximize for objective in fronts[0].objectives]
        corner = [fronts[0].hypervolume.reference_point[objective.name] for objective in fronts[0].objectives]
        random, N = np.random.default_rng(0), samples.shape[2]
        drawn = np.stack([samples[:, :, random.integers(N, size=N)].mean(axis=2) for _ in range(resamples)])
        return cls(
            volumes=_volumes(samples.mean(axis=2), maximize, corner),
            drawn_volumes=np.stack([_volumes(means, maximize, corner) for means in drawn]),
            gains=_volumes(samples.mean(axis=2), maximize),
            drawn_gains=np.stack([_volumes(means, maximize) for means in drawn]),
            means=samples.mean(axis=(0, 2))[1:],
            drawn_means=drawn[:, :, 1:],
            confidence=confidence,
        )

    def volume(self) -> Score:
        """The mean hypervolume of the seeds."""
        return self._score(self.volumes.mean(), _over_seeds(self.drawn_volumes))

    def gain(self) -> Score:
        """The mean hypervolume of the seeds above the reference policy."""
        return self._score(self.gains.mean(), _over_seeds(self.drawn_gains))

    def points(self) -> list[list[Score]]:
        """Of each point, the mean of each column over seeds and prompts."""
        drawn_BPC = _over_seeds(self.drawn_means)
        return [
            [self._score(mean, drawn_BPC[:, p, c]) for c, mean in enumerate(row)] for p, row in enumerate(self.means)
        ]

    def ratio(self, own: Sequence[int], base: _Resampled, others: Sequence[int]) -> Score | None:
        """Of hypervolumes, over pairs of seeds by their places; None where the base has none to divide by."""
        below, below_B = base.volumes[others].mean(), _over_seeds(base.drawn_volumes[:, others])
        if not below > 0 or not (below_B > 0).all():
            return None
        return self._score(self.volumes[own].mean() / below, _over_seeds(self.drawn_volumes[:, own]) / below_B)

    def _score(self, mean: float, drawn_B: np.ndarray) -> Score:
        low, high = np.quantile(drawn_B, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return Score(float(mean), float(low), float(high))


def _over_seeds(numbers_BS: np.ndarray) -> np.ndarray:
    """Each resample's mean over seeds that are drawn anew."""
    B, S = numbers_BS.shape[:2]
    drawn_BS = np.random.default_rng(1).integers(S, size=(B, S))
    means: np.ndarray = numbers_BS[np.arange(B)[:, None], drawn_BS].mean(axis=1)
    return means


def _volumes(means_SPC: np.ndarray, maximize: Sequence[bool], corner: Sequence[float] | None = None) -> np.ndarray:
    """Hypervolume of each seed's points down to `corner`, else to its first row, the reference policy; (S,).

    KL, the last column, is left out.
    """
    import moocore

    def volume(means_PC: np.ndarray) -> float:
        start = means_PC[0, :-1] if corner is None else corner
        return float(moocore.hypervolume(means_PC[1:, :-1], ref=start, maximise=list(maximize)))

    return np.array([volume(means_PC) for means_PC in means_SPC])


def _samples(front: Front) -> np.ndarray:
    """Scores of each policy on each prompt, and its KL, (1 + P, N, K + 1), the reference first."""
    lines = [json.loads(line) for line in (front.folder / SCORES).read_text("utf-8").splitlines()]
    names = [objective.name for objective in front.objectives]
    by_policy = {line["policy"]: [*(line["scores"][name] for name in names), line["kl"]] for line in lines}
    policies = [front.reference, *front.points]
    return np.array([by_policy[policy.name] for policy in policies]).transpose(0, 2, 1)


def _method(seeds: Sequence[int], fronts: Sequence[Front], resampled: _Resampled) -> MethodResult:
    names = [objective.name for objective in fronts[0].objectives]
    return MethodResult(
        hypervolume=resampled.volume(),
        hypervolume_by_seed=dict(zip(seeds, resampled.volumes.tolist(), strict=True)),
        hypervolume_above_reference=resampled.gain(),
        **_costs([read_ledger(front.folder) for front in fronts]),
        seeds=len(seeds),
        points=[
            ComparedPoint(point.weights or {}, dict(zip(names, scores, strict=True)), kl)
            for point, (*scores, kl) in zip(fronts[0].points, resampled.points(), strict=True)
        ],
    )


def _costs(ledgers: Sequence[Ledger | None]) -> dict[str, Any]:
    """Means over seeds of the cost of a front."""
    there = [ledger for ledger in ledgers if ledger is not None]
    totals = [ledger.total for ledger in there]
    means: dict[str, list[float]] = {
        "cost_seconds": [total.seconds for total in totals],
        "cost_tokens": [total.tokens for total in totals],
        "tokens_generated": [total.tokens_generated for total in totals],
        "forward_passes": [total.forward_passes for total in totals],
        "backward_passes": [total.backward_passes for total in totals],
        "device_hours_per_model": [ledger.device_hours / ledger.models for ledger in there],
    }
    peak = max(total.peak_memory_bytes for total in totals)
    return {**{name: float(np.mean(values)) for name, values in means.items()}, "peak_memory_bytes": peak}


def _ratios(fronts: Mapping[str, Mapping[int, Front]], resampled: Mapping[str, _Resampled]) -> dict[str, Score]:
    """Of each method whose hypervolume can be divided by the baseline's."""
    if BASELINE not in fronts:
        return {}
    found = {}
    baseline = list(fronts[BASELINE])
    for method, of_method in fronts.items():
        own = list(of_method)
        common = [seed for seed in own if seed in baseline]
        if method != BASELINE and common:
            places = [own.index(seed) for seed in common], [baseline.index(seed) for seed in common]
            found[method] = resampled[method].ratio(places[0], resampled[BASELINE], places[1])
    return {method: ratio for method, ratio in found.items() if ratio is not None}
