"""Hypervolume agrees with boxes counted by hand; means and their bootstrap intervals.

Two objectives, the first maximised, the second minimised, reference point (0, 10):

    a = (2, 4)  box (2 - 0) x (10 - 4) = 12
    b = (3, 8)  box (3 - 0) x (10 - 8) =  6
    c = (1, 9)  box inside a's: dominated by a and by b
    union of a and b = 12 + 6 - common box (2 x 2 = 4) = 14; contributions: a 14 - 6 = 8, b 14 - 12 = 2, c 0
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from modpo.base.errors import NumericError
from modpo.front.pareto import (
    Hypervolume,
    Score,
    bootstrap_mean,
    default_reference_point,
    dominated_flags,
    measure_hypervolume,
)

BOOTSTRAP = {"resamples": 200, "confidence": 0.95, "seed": 0}


def constant(means, prompts=3):
    """Samples (P, N, K) whose every prompt scores the mean."""
    return np.repeat(np.asarray(means, dtype=float)[:, None, :], prompts, axis=1)


def test_hypervolume_of_boxes_counted_by_hand():
    samples = constant([(2, 4), (3, 8), (1, 9)])
    hypervolume, contributions, dominated = measure_hypervolume(
        samples, [True, False], np.array([0.0, 10.0]), names=["good", "long"], **BOOTSTRAP
    )
    assert hypervolume == Hypervolume(14, 14, 14, {"good": 0.0, "long": 10.0})
    assert contributions.tolist() == [8, 2, 0]
    assert dominated.tolist() == [False, False, True]


def test_one_objective_is_a_length_and_a_point_below_the_reference_point_adds_nothing():
    """Maximised from 1: the best of 4, 3 and 0 reaches 4 - 1 = 3; the others are dominated."""
    hypervolume, contributions, dominated = measure_hypervolume(
        constant([(4,), (3,), (0,)]), [True], np.array([1.0]), **BOOTSTRAP
    )
    assert (hypervolume.mean, contributions.tolist()) == (3, [3, 0, 0])
    assert dominated.tolist() == [False, True, True]
    outside, contributions, _ = measure_hypervolume(constant([(0, 9)]), [True, True], np.ones(2), **BOOTSTRAP)
    assert (outside.mean, contributions.tolist()) == (0, [0])


def test_equal_points_do_not_dominate_each_other():
    assert dominated_flags(np.array([(1, 1), (1, 1), (0, 1)]), [True, True]).tolist() == [False, False, True]


def inclusion_exclusion(means, reference_point):
    """Volume of a union of boxes: sum over subsets of (-1)^(size+1) times the volume of their common box."""
    edges = np.maximum(means - reference_point, 0)
    subsets = (s for size in range(1, len(edges) + 1) for s in itertools.combinations(range(len(edges)), size))
    return sum((-1) ** (len(s) + 1) * np.prod(edges[list(s)].min(axis=0)) for s in subsets)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_equals_inclusion_exclusion(objectives, seed):
    random = np.random.default_rng(seed)
    means = random.integers(0, 5, (6, objectives)).astype(float)  # integers: ties and duplicates occur
    maximize = random.random(objectives) < 0.5
    sign, corner = np.where(maximize, 1, -1), np.full(objectives, 0.5)
    hypervolume, contributions, dominated = measure_hypervolume(
        constant(means * sign), maximize.tolist(), corner * sign, **BOOTSTRAP
    )
    worse = [any((q >= p).all() and (q > p).any() for q in means) for p in means]
    front = means[~np.array(worse)]
    assert dominated.tolist() == worse
    assert hypervolume.mean == pytest.approx(inclusion_exclusion(means, corner))
    for mean, dominated_here, contribution in zip(means, worse, contributions, strict=True):
        others = np.delete(front, np.flatnonzero((front == mean).all(axis=1))[:1], axis=0)
        lost = inclusion_exclusion(front, corner) - inclusion_exclusion(others, corner)
        assert contribution == pytest.approx(0 if dominated_here else lost, abs=1e-12)


def test_hypervolume_interval_resamples_the_same_prompts_for_all_points():
    """Two equal policies: the volume is the mean of either, x 1. Were each resampled by itself, the interval
    would be that of the better of two independent means: its lower end about one standard error higher."""
    a = np.random.default_rng(0).random((1, 40, 1))
    samples = np.concatenate([np.dstack([a, np.ones_like(a)]), np.dstack([a, np.ones_like(a)])])
    hypervolume, _, _ = measure_hypervolume(samples, [True, True], np.zeros(2), **BOOTSTRAP | {"resamples": 4000})
    alone = bootstrap_mean(a[0, :, 0], resamples=4000, confidence=0.95, seed=1)
    assert hypervolume.mean == pytest.approx(alone.mean)
    assert hypervolume.ci_low == pytest.approx(alone.ci_low, abs=0.01)
    assert hypervolume.ci_high == pytest.approx(alone.ci_high, abs=0.01)
    assert hypervolume.ci_high - hypervolume.ci_low > 0.1


def test_bootstrap_mean_covers_as_often_as_it_says():
    """Of 200 samples of mean 0, about 95 % of the 95 % intervals hold 0 (percentile: a little less)."""
    random = np.random.default_rng(0)
    scores = [bootstrap_mean(random.normal(size=50), **BOOTSTRAP) for _ in range(200)]
    assert 0.89 <= np.mean([score.ci_low <= 0 <= score.ci_high for score in scores]) <= 0.99


def test_bootstrap_mean_is_reproducible_and_a_constant_has_no_width():
    samples = np.random.default_rng(0).random(30)
    assert bootstrap_mean(samples, **BOOTSTRAP) == bootstrap_mean(samples, **BOOTSTRAP)
    assert bootstrap_mean(np.full(5, 0.1), **BOOTSTRAP) == Score(0.1, 0.1, 0.1)
    assert bootstrap_mean(np.array([3.0]), **BOOTSTRAP) == Score(3, 3, 3)


def test_default_reference_point_is_one_deviation_worse():
    """Scores 1, 3: mean 2, deviation 1, maximised: 1. Scores 10, 30: mean 20, deviation 10, minimised: 30."""
    assert default_reference_point(np.array([(1, 10), (3, 30)]), [True, False]).tolist() == [1, 30]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_refused(bad):
    with pytest.raises(NumericError, match=r"index \[0, 1, 0\]"):
        measure_hypervolume(np.array([[[1.0], [bad]]]), [True], np.zeros(1), **BOOTSTRAP)
    with pytest.raises(NumericError):
        bootstrap_mean(np.array([1.0, bad]), **BOOTSTRAP)
    with pytest.raises(ValueError, match="shape"):
        bootstrap_mean(np.array([]), **BOOTSTRAP)
