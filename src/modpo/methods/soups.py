"""Soups: a policy for each objective, averaged in weight space by the preference vector.

    weight update at w  =  sum_i w_i (update of the policy that was trained for objective i alone)

Ramé et al., "Rewarded soups", NeurIPS 2023, arXiv 2306.04488. The policies at the ends are trained as MODPO trains at a
unit vector: DPO where the objective has pairs, regression on its reward where it has none.

<output>/ends/<objective>/    the policy of one objective, as a point that was trained alone
<output>/points/<name>/       their average at a vector
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from modpo.base import simplex
from modpo.base.artifact import Artifact
from modpo.base.costs import NOTHING, Cost
from modpo.base.files import read_manifest
from modpo.base.progress import Progress, say
from modpo.base.simplex import Weights
from modpo.methods.modpo import train
from modpo.methods.point import about_combined
from modpo.methods.run import Maker, Run
from modpo.models.combine import average_models, combine_adapters

ENDS = "ends"


def maker(run: Run) -> Maker:
    """Train the policies of the objectives that are not there; each vector averages them.

    Raises:
        IntegrityError: the folder holds policies of other data or settings.
        NumericError: a loss or gradient that is not finite.
    """
    names = list(run.experiment.objectives)
    ends = {name: run.experiment.output_dir / ENDS / name for name in names}
    with Progress("ends", len(ends), "objectives", spans=True) as progress:
        for vector, (name, folder) in zip(simplex.lattice(names, 1), ends.items(), strict=True):
            say(f"end {name}: {simplex.label(vector)}")
            with progress.part(spanned=True):
                train(run, vector, folder)
    return partial(_average, run, ends)


def _average(run: Run, ends: Mapping[str, Path], weights: Weights, folder: Path) -> None:
    """The policy at a vector, its cost a share of the ends."""
    manifests = {name: read_manifest(end) or {} for name, end in ends.items()}
    parts = {"ends": {name: m["key"] for name, m in manifests.items()}, "weights": weights}
    point = Artifact(folder, parts, simplex.name(weights))
    if point.there():
        return
    experiment = run.experiment
    cost = sum((Cost.of(m["cost"]) for m in manifests.values()), NOTHING).share(len(experiment.sweep.weights)).written()
    with point.making(**about_combined(experiment, weights, cost), made_of=ENDS) as new:
        coefficients = {ends[name]: weight for name, weight in weights.items()}
        if experiment.lora is None:
            average_models(coefficients, new.folder)
        else:
            combine_adapters(coefficients, new.folder)
    say(f"{point.label}: averaged from the ends")
