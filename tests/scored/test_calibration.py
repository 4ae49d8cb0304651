"""Calibration against closed forms and against scipy's general optimiser."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_expit

from modpo.base.errors import InputError, IntegrityError
from modpo.experiment.sections import Objective, RewardSection
from modpo.scored.calibration import UNCALIBRATED, Calibration, bradley_terry, fill_of, read_or_fit, standardise

WHERE = {"where": "e.yaml:3", "objective": "kind"}


def test_standardise_by_hand():
    """Scores 1, 2, 3, 6: mean 3, sample variance (4 + 1 + 0 + 9) / 3."""
    fitted = standardise([1, 2, 3, 6], **WHERE)
    assert fitted.center == 3
    assert fitted.factor == pytest.approx(1 / math.sqrt(14 / 3))
    assert [fitted.apply(raw, 1.0) for raw in (3, 3 + math.sqrt(14 / 3))] == pytest.approx([0, 1])
    assert fitted.apply(6, -2.0) == pytest.approx(-2 * 3 / math.sqrt(14 / 3))


def test_a_reward_that_never_changes_cannot_be_standardised():
    with pytest.raises(InputError, match=r"e.yaml:3:objectives.kind.calibration: all 3 answers .* same reward"):
        standardise([2.0, 2.0, 2.0], **WHERE)


@pytest.mark.parametrize("seed", range(4))
def test_bradley_terry_is_the_maximum_of_its_likelihood(seed: int):
    """The oracle: scipy's Nelder-Mead on the same likelihood, one tied pair of mean size beside the data's."""
    rng = np.random.default_rng(seed)
    d = rng.normal(0.4, 1, 50) * 10.0 ** rng.integers(-3, 3)
    size = np.abs(d).mean()

    def negative(factor: np.ndarray) -> float:
        tie = (log_expit(factor * size) + log_expit(-factor * size)) / 2
        return float(-(log_expit(factor * d).sum() + tie.item()))

    best = minimize(lambda x: negative(x / size), x0=[1.0], method="Nelder-Mead", options={"xatol": 1e-10}).x[0] / size
    assert bradley_terry(list(d), **WHERE).factor == pytest.approx(best, rel=1e-4)


def test_bradley_terry_finds_the_scale_that_drew_the_labels():
    """Labels drawn with logits 0.05 times the difference of two rewards."""
    rng = np.random.default_rng(0)
    d = np.abs(rng.normal(0, 40, 20000))
    chosen_first = rng.random(len(d)) < 1 / (1 + np.exp(-0.05 * d))
    assert bradley_terry(list(np.where(chosen_first, d, -d)), **WHERE).factor == pytest.approx(0.05, rel=0.05)


def test_bradley_terry_stays_finite_when_all_pairs_agree_and_refuses_a_reward_that_disagrees():
    agreed = bradley_terry([1.0, 2.0, 3.0], **WHERE)
    assert 0 < agreed.factor < 10
    with pytest.raises(InputError, match="the reward disagrees with its 2 pairs; fix: check `maximize`"):
        bradley_terry([1.0, -2.0], **WHERE)
    with pytest.raises(InputError, match="no pair of this objective has two different rewards"):
        bradley_terry([0.0, 0.0], **WHERE)


def test_gaps_are_filled_with_the_mean_or_stay_gaps():
    graded = {how: Objective("g", reward=RewardSection(column="g", missing=how)) for how in ("mean", "drop")}
    scores = [1.0, None, 4.0]
    assert fill_of(graded["mean"], scores) == 2.5
    assert fill_of(graded["drop"], scores) is None
    assert Calibration(fill=2.5).apply(None, -2.0) == -5
    assert UNCALIBRATED.apply(None, 1.0) is None


def test_a_fit_is_kept_and_a_changed_one_is_found(tmp_path):
    fitted = Calibration("standardise", 3.0, 0.25, fitted_on="4 answers")
    made = read_or_fit(tmp_path, {"on": 1}, lambda: fitted)
    assert made[0] == fitted
    assert made[1] is not None
    assert read_or_fit(tmp_path, {"on": 1}, lambda: pytest.fail("fitted again")) == made
    assert read_or_fit(tmp_path, {"on": 2}, lambda: UNCALIBRATED)[0] == UNCALIBRATED
    (kept,) = [path for path in tmp_path.rglob("manifest.json") if json.loads(path.read_text())["identity"]["on"] == 1]
    kept.write_text(kept.read_text().replace("0.25", "0.35"))
    with pytest.raises(IntegrityError, match="its numbers were changed"):
        read_or_fit(tmp_path, {"on": 1}, lambda: fitted)
