"""Best of n: a point is a vector by which answers of the reference are chosen; see `modpo.policies.best_of_n`.

<output>/points/<name>/best_of_n.json, manifest.json
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from modpo.base import simplex
from modpo.base.costs import NOTHING
from modpo.base.files import new_folder, sha256_json, write_json
from modpo.base.simplex import Weights
from modpo.methods.point import is_there, point_parts
from modpo.methods.run import Maker, Run
from modpo.policies.best_of_n import FILE, BestOfN


def maker(run: Run) -> Maker:
    """Nothing is trained: the work is done where policies are measured."""
    return partial(_describe, run)


def _describe(run: Run, weights: Weights, folder: Path) -> None:
    best = BestOfN(run.experiment.best_of_n.n, weights)
    key = sha256_json({**point_parts(run, weights), "best_of_n": best.n})
    if is_there(folder, key, simplex.name(weights)):
        return
    about = {"key": key, "weights": weights, "seed": run.experiment.seed, "cost": NOTHING.written()}
    with new_folder(folder, about) as temporary:
        write_json(temporary / FILE, asdict(best))
