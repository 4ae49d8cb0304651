"""The audit of a policy: the regression's numbers in closed form, and against scipy's on noisy answers."""

from __future__ import annotations

import numpy as np
import pytest

from modpo.front.audit import UNDERTRAINED, audit

WEIGHTS = {"a": 0.7, "b": 0.3}
BETA = 0.1


def rewards_of(prompts: int, answers: int, seed: int = 0) -> dict[str, list[list[float]]]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(prompts, answers)).tolist() for name in WEIGHTS}


def log_ratios_of(margins: dict[str, list[list[float]]], slope: float, noise: float = 0.0) -> list[list[float]]:
    """D of a policy that is optimal for `slope` times the rewards, with noise; a part that depends on the prompt."""
    rng = np.random.default_rng(1)
    weighted = sum(w * np.array(margins[name]) for name, w in WEIGHTS.items())
    d = slope * weighted / BETA + noise * rng.normal(size=weighted.shape)
    return (d + rng.normal(scale=50, size=(len(d), 1))).tolist()


@pytest.mark.parametrize("slope", [1.0, 0.5, 3.0])
def test_an_optimal_policy_is_on_the_line(slope: float):
    margins = rewards_of(prompts=5, answers=4)
    found = audit(WEIGHTS, log_ratios_of(margins, slope), margins, beta=BETA)
    assert found is not None
    assert found.slope == pytest.approx(slope, rel=1e-9)
    assert found.r2 == pytest.approx(1, rel=1e-9)
    assert (found.pairs, found.prompts, found.verdict) == (5 * 6, 5, "")


def test_noise_against_the_normal_equation():
    """Slope and R2 of least squares without intercept, over every two answers, by scipy."""
    from scipy.linalg import lstsq

    margins = rewards_of(prompts=20, answers=3)
    ratios = log_ratios_of(margins, 1.0, noise=10.0)
    found = audit(WEIGHTS, ratios, margins, beta=BETA)
    x, y = [], []
    for n in range(20):
        for i, j in [(0, 1), (0, 2), (1, 2)]:
            x.append(sum(w * (margins[name][n][i] - margins[name][n][j]) for name, w in WEIGHTS.items()))
            y.append(BETA * (ratios[n][i] - ratios[n][j]))
    (slope,), residual, *_ = lstsq(np.array(x)[:, None], np.array(y))
    assert found is not None
    assert found.slope == pytest.approx(float(slope))
    assert found.r2 == pytest.approx(1 - float(residual) / float(np.square(y).sum()))
    assert 0.05 < found.r2 < 0.95


@pytest.mark.parametrize(
    ("slope", "verdict"),
    [(-0.5, "broken"), (UNDERTRAINED / 2, "undertrained"), (UNDERTRAINED * 1.01, "")],
)
def test_verdicts(slope: float, verdict: str):
    margins = rewards_of(prompts=3, answers=2)
    found = audit(WEIGHTS, log_ratios_of(margins, slope), margins, beta=BETA)
    assert found is not None
    assert found.verdict == verdict


def test_which_answer_is_called_the_first_does_not_matter():
    margins = rewards_of(prompts=6, answers=3)
    ratios = log_ratios_of(margins, 1.0, noise=10.0)
    turned = {name: [row[::-1] for row in rows] for name, rows in margins.items()}
    one, other = (
        audit(WEIGHTS, ratios, margins, beta=BETA),
        audit(WEIGHTS, [r[::-1] for r in ratios], turned, beta=BETA),
    )
    assert one is not None
    assert other is not None
    assert (one.slope, one.r2) == pytest.approx((other.slope, other.r2))


def test_only_objectives_with_a_weight_are_needed():
    found = audit({"a": 1.0, "unmeasured": 0.0}, [[0.0, 5.0]], {"a": [[0.0, 0.5]]}, beta=BETA)
    assert found is not None
    assert found.slope == pytest.approx(1)


def test_prompts_with_one_answer_do_not_count():
    found = audit({"a": 1.0}, [[3.0], [0.0, 5.0]], {"a": [[9.0], [0.0, 0.5]]}, beta=BETA)
    assert found is not None
    assert (found.pairs, found.prompts) == (1, 1)


def test_nothing_to_compare():
    assert audit({"a": 1.0}, [], {"a": []}, beta=BETA) is None
    assert audit({"a": 1.0}, [[1.0], [2.0]], {"a": [[1.0], [2.0]]}, beta=BETA) is None
    assert audit({"a": 1.0}, [[1.0, 2.0]], {"a": [[3.0, 3.0]]}, beta=BETA) is None


def test_a_policy_that_has_not_moved():
    found = audit({"a": 1.0}, [[0.0, 0.0]], {"a": [[0.0, 0.5]]}, beta=BETA)
    assert found is not None
    assert (found.slope, found.r2, found.verdict) == (0, 0, "undertrained")
