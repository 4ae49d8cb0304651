"""Calibration: raw rewards in comparable units, so that a preference vector means what it says.

    margin reward = (+1 or -1 by `maximize`) * scale * factor * (raw - center)

    none            center 0, factor 1
    standardise     center and 1 / factor are mean and standard deviation over answers of the reference policy
    bradley_terry   factor makes differences logits on the objective's own pairs: P(chosen over rejected) =
                    sigmoid(factor * difference), as the loss assumes (paper, section 2)

What was fitted is kept under a key of what it was fitted on, and applied unchanged wherever the reward is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modpo.base.artifact import cost_of
from modpo.base.costs import Cost, Meter
from modpo.base.errors import InputError, IntegrityError, Problem
from modpo.base.files import MANIFEST, is_own_file, locked, read_sealed, remove_leftovers, sha256_json, write_sealed
from modpo.experiment.sections import Objective

SCHEMA = 2  # 2: sealed


@dataclass(frozen=True)
class Calibration:
    """How an objective's raw rewards become margin rewards."""

    method: str = "none"
    center: float = 0.0
    factor: float = 1.0  # per unit of the raw reward
    fill: float | None = None  # the raw reward of a response without one; None: it has no margin reward either
    fitted_on: str = ""  # for a reader: "64 answers of the reference policy"

    def apply(self, raw: float | None, sign: float) -> float | None:
        """The margin reward of a raw reward; `sign` is the objective's."""
        raw = self.fill if raw is None else raw
        return None if raw is None else sign * self.factor * (raw - self.center)


UNCALIBRATED = Calibration()


def standardise(scores: Sequence[float] | np.ndarray, *, where: str, objective: str) -> Calibration:
    """Mean and standard deviation of raw rewards, as center and 1 / factor.

    Raises:
        InputError: all scores are the same.
    """
    values = np.array(scores, dtype=float)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    if not deviation > 0:
        problem = f"all {len(values)} answers of the reference policy have the same reward, which has no deviation"
        raise InputError(Problem(where, f"objectives.{objective}.calibration", problem, "use `calibration: none`"))
    return Calibration("standardise", float(values.mean()), 1 / deviation, fitted_on=f"{len(values)} answers")


def bradley_terry(differences: Sequence[float] | np.ndarray, *, where: str, objective: str) -> Calibration:
    """The factor under which reward differences are the logits of the pairs' labels, by maximum likelihood.

        maximise sum_i log sigmoid(factor * d_i),    d_i = reward(chosen) - reward(rejected), larger is better

    Pairs that all agree would make the factor infinite; one tied pair of mean size is counted beside them.

    Raises:
        InputError: no pairs, or a reward that disagrees with them on the whole.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    d = np.array(differences, dtype=float)
    size = float(np.abs(d).mean()) if len(d) else 0.0
    field = f"objectives.{objective}.calibration"
    if not size > 0:
        problem = "no pair of this objective has two different rewards to fit a factor on"
        raise InputError(Problem(where, field, problem, "use `calibration: standardise` or `none`"))
    if d.sum() <= 0:
        fix = "check `maximize`, or use `calibration: standardise`"
        raise InputError(Problem(where, field, f"the reward disagrees with its {len(d)} pairs", fix))

    def slope(factor: float) -> float:  # of the negative log-likelihood, which is convex
        tie = size * (expit(factor * size) - 0.5)
        return float(tie - (d * expit(-factor * d)).sum())

    high = 1 / size
    while slope(high) < 0:
        high *= 2
    return Calibration("bradley_terry", 0.0, float(brentq(slope, 0.0, high)), fitted_on=f"{len(d)} pairs")


def fill_of(objective: Objective, scores: Sequence[float | None] | np.ndarray) -> float | None:
    """What stands for a gap: the mean of the raw rewards that are there, where the objective says so."""
    reward = objective.reward
    if reward is None or reward.missing != "mean":
        return None
    given = [score for score in scores if score is not None]
    return float(np.mean(given)) if given else None


def read_or_fit(cache_dir: Path, identity: dict[str, Any], fit: Any) -> tuple[Calibration, Cost | None]:
    """The calibration of that identity from the cache, fitted and kept there if it is not.

    Args:
        identity: everything that it was fitted on.
        fit: () -> Calibration.

    Returns:
        It, and the cost of fitting it, None where that was not recorded.

    Raises:
        IntegrityError: what the cache holds cannot be read.
    """
    identity = {"schema": SCHEMA, **identity}
    folder = cache_dir / "scored" / f"calibration-{sha256_json(identity)[:24]}"
    path = folder / MANIFEST
    if not path.is_file():
        with locked(folder, wait=True):
            remove_leftovers(folder)
            if not path.is_file():
                with Meter() as meter:
                    fitted = asdict(fit())
                write_sealed(path, {"identity": identity, "calibration": fitted, "cost": meter.cost.written()})
    try:
        if not is_own_file(folder, MANIFEST):
            raise ValueError("it is no regular file")
        read = read_sealed(path)
        if read["identity"] != json.loads(json.dumps(identity)):
            raise ValueError("it is of something else")
        return Calibration(**read["calibration"]), cost_of(read)
    except (ValueError, KeyError, TypeError) as error:
        problem = f"its numbers were changed or cannot be read ({error})"
        raise IntegrityError(f"{path}: {problem}; fix: delete {folder}") from error
