"""Best of n: a point is a vector by which answers of the reference are chosen; see `modpo.policies.best_of_n`.

<output>/points/<name>/best_of_n.json, manifest.json
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from modpo.base import simplex
from modpo.base.artifact import Artifact
from modpo.base.costs import NOTHING
from modpo.base.files import write_json
from modpo.base.simplex import Weights
from modpo.methods.point import point_parts
from modpo.methods.run import Maker, Run
from modpo.policies.best_of_n import FILE, BestOfN


def maker(run: Run) -> Maker:
    """Nothing is trained: the work is done where policies are measured."""
    return partial(_describe, run)


def _describe(run: Run, weights: Weights, folder: Path) -> None:
    best = BestOfN(run.experiment.best_of_n.n, weights)
    point = Artifact(folder, {**point_parts(run, weights), "best_of_n": best.n}, simplex.name(weights))
    if point.there() is None:
        with point.making(weights=weights, seed=run.experiment.seed, cost=NOTHING.written()) as new:
            write_json(new.folder / FILE, asdict(best))
