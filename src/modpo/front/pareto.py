"""Pareto mathematics of a sweep: means and hypervolume with bootstrap intervals, dominated points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modpo.base.errors import NumericError


@dataclass(frozen=True)
class Score:
    """A mean over prompts, with its bootstrap interval."""

    mean: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Hypervolume:
    """The volume that a sweep's mean scores dominate, down to the reference point, with its interval."""

    mean: float
    ci_low: float
    ci_high: float
    reference_point: dict[str, float]


def bootstrap_mean(samples: np.ndarray, *, resamples: int, confidence: float, seed: int) -> Score:
    """The mean of `samples` (N,), one number a prompt, with its percentile bootstrap interval.

    Samples that are all equal, or a single one, say nothing of their spread: the interval has zero width.

    Raises:
        NumericError: a sample is NaN or infinite. ValueError: no samples.
    """
    _refuse_bad_samples(samples, dimensions=1)
    mean = float(np.mean(samples))
    if np.all(samples == samples[0]):
        return Score(mean, mean, mean)
    from scipy.stats import bootstrap

    interval = bootstrap(
        (samples,),
        np.mean,
        n_resamples=resamples,
        batch=64,  # bounds the memory: 64 x N numbers at a time
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Score(mean, float(interval.low), float(interval.high))


def default_reference_point(reference_scores: np.ndarray, maximize: Sequence[bool]) -> np.ndarray:
    """The corner from which hypervolume is measured: a fixed rule, the same for every method.

    In each objective, the reference policy's mean worsened by one standard deviation of its scores over
    prompts (population form, ddof=0). It is known before any policy is trained. A point that does not
    dominate it contributes nothing.

    Args:
        reference_scores: raw rewards of the reference policy, (N, K). maximize: K directions.

    Returns:
        (K,), raw units.
    """
    _refuse_bad_samples(reference_scores, dimensions=2)
    better_K = np.where(maximize, 1.0, -1.0)
    return reference_scores.mean(axis=0) - better_K * reference_scores.std(axis=0)


def dominated_flags(means: np.ndarray, maximize: Sequence[bool]) -> np.ndarray:
    """Which rows of `means` (M, K) another row dominates: no worse anywhere, better somewhere; (M,) bool."""
    import moocore

    return ~moocore.is_nondominated(means, maximise=list(maximize), keep_weakly=True)


def measure_hypervolume(
    samples: np.ndarray,
    maximize: Sequence[bool],
    reference_point: np.ndarray,
    *,
    resamples: int,
    confidence: float,
    seed: int,
    names: Sequence[str] | None = None,
) -> tuple[Hypervolume, np.ndarray, np.ndarray]:
    """Hypervolume of a sweep's mean scores, its interval, and what each point adds.

    The interval is a percentile bootstrap over prompts: every resample draws N prompts once, for all points,
    since policies are compared on the same prompts. Volume is in the product of the objectives' raw units.

    Args:
        samples: raw rewards, (P, N, K): P points without the reference, N prompts, K objectives.
        maximize: K directions. reference_point: (K,), see `default_reference_point`.
        resamples, confidence, seed: of the bootstrap.
        names: the objectives' names, keys of the result's `reference_point`; "0", "1", ... if not given.

    Returns:
        The hypervolume; contributions (P,): what the volume of the non-dominated points loses without one of
        them, 0 for a dominated one, for one of two equals, and for one that the reference point stops; and
        `dominated_flags` (P,).

    Raises:
        NumericError: a sample is NaN or infinite. ValueError: no samples.
    """
    import moocore

    _refuse_bad_samples(samples, dimensions=3)
    volume = moocore.Hypervolume(ref=reference_point, maximise=list(maximize))
    means_PK = samples.mean(axis=1)
    random, N = np.random.default_rng(seed), samples.shape[1]
    volumes = [volume(samples[:, random.integers(0, N, N)].mean(axis=1)) for _ in range(resamples)]
    low, high = np.quantile(volumes, [(1 - confidence) / 2, (1 + confidence) / 2])
    corner = dict(zip(names or map(str, range(len(maximize))), map(float, reference_point), strict=True))
    contributions = moocore.hv_contributions(
        # moocore wants two columns: a second one that is 1 for everybody, measured from 0, changes no volume
        np.column_stack([means_PK, np.ones(len(means_PK))]),
        ref=[*reference_point, 0],
        maximise=[*maximize, True],
    )
    hypervolume = Hypervolume(float(volume(means_PK)), float(low), float(high), corner)
    return hypervolume, contributions, dominated_flags(means_PK, maximize)


def _refuse_bad_samples(samples: np.ndarray, *, dimensions: int) -> None:
    if samples.ndim != dimensions or samples.size == 0:
        raise ValueError(f"expected samples in {dimensions} dimensions, got shape {samples.shape}")
    if not np.isfinite(samples).all():
        place = np.argwhere(~np.isfinite(samples))[0].tolist()
        raise NumericError(f"a score is NaN or infinite, at index {place} of shape {samples.shape}")
