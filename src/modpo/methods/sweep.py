"""Many preference vectors, one policy each, by whatever method. A killed sweep goes on from the last checkpoint of the
point it was at; a point that fails is recorded and the others go on.

    <output>/experiment.yaml
    <output>/points/<name>/     a plain PEFT adapter, `training_log.json` and a manifest
    <output>/points/.work-<name>/     checkpoints of a point that is not finished, see `modpo.training.checkpoints`
    <output>/failed/<name>.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from modpo.base import simplex
from modpo.base.artifact import require_free
from modpo.base.costs import Cost
from modpo.base.errors import InputError, IntegrityError, Problem
from modpo.base.failures import FAILED, done_or_recorded
from modpo.base.files import locked, new_file, read_manifest, remove_unfinished
from modpo.base.progress import Progress, say
from modpo.base.simplex import Weights
from modpo.base.text import without_secrets
from modpo.data.loading import load_groups
from modpo.experiment.file import EXPERIMENT_FILE, read_experiment, to_yaml
from modpo.experiment.methods import CONTINUOUS
from modpo.experiment.proxy import without_proxies
from modpo.experiment.sections import AUTO, Experiment, resolved
from modpo.forward.packing_choice import with_packing
from modpo.methods.run import Run, maker
from modpo.models.dtype_choice import with_dtype
from modpo.models.reference import ReferenceModel
from modpo.policies.point import SweptPoint
from modpo.scored.of_experiment import experiment_scorer


def run_sweep(experiment: Experiment) -> list[str]:
    """Make the policy of every vector of the experiment that has no finished point yet, by `sweep.method`.

    Returns:
        Names of the points that failed; why stands in `<output>/failed/<name>.json`.

    Raises:
        InputError: no vectors. IntegrityError: the folder holds another experiment. EnvironmentFault: it is busy.
    """
    vectors = experiment.sweep.weights
    if not vectors:
        fix = "add `sweep: {grid: 5}`, a `lattice`, or a list of `weights`"
        raise InputError(Problem(experiment.where("sweep"), "sweep", "no preference vectors", fix))
    failed = []
    with _started(experiment) as run:
        make = maker(run)
        with Progress("sweep", len(vectors), "points", spans=True) as points:
            for number, weights in enumerate(vectors, start=1):
                say(f"point {number} of {len(vectors)}: {simplex.label(weights)}")
                name, folder = simplex.name(weights), point_folder(experiment, weights)
                record, about = _failure_record(experiment, weights), {"name": name, "weights": weights}
                with points.part(spanned=True):
                    if not done_or_recorded(partial(make, weights, folder), f"point {name}", record, about):
                        run.reference.release()
                        failed.append(name)
    return failed


def train_point(experiment: Experiment, weights: Weights, output: Path | None = None) -> Path:
    """Make the policy of one vector in `output` (default: its place in the sweep's folder) and return the folder."""
    folder = output or point_folder(experiment, weights)
    with _started(experiment, output) as run:
        maker(run)(weights, folder)
        if output is None:
            _failure_record(experiment, weights).unlink(missing_ok=True)
    return folder


def train_continuous(experiment: Experiment, output: Path | None = None) -> Path:
    """Train the continuous policy and no point into `output` (default: its place in the sweep's folder)."""
    from modpo.methods.continuous import train

    folder = output or experiment.output_dir / CONTINUOUS
    with _started(experiment, output) as run:
        train(run, folder)
    return folder


@contextmanager
def _started(experiment: Experiment, output: Path | None = None) -> Iterator[Run]:
    """What every method starts from, the data scored, under the lock of where the policies go.

    Args:
        output: a folder of its own; None: the sweep's.
    """
    experiment = resolved(with_dtype(experiment))
    train, _ = load_groups(experiment, keep=True)
    if output is not None:
        require_free(output)
    with locked(output.parent if output else experiment.output_dir):
        if output is None:
            claim_folder(experiment.asked)
            remove_unfinished(experiment.output_dir)
        reference = ReferenceModel.of(experiment)
        experiment = with_packing(experiment, reference)
        scorer = experiment_scorer(experiment, reference)
        yield Run(experiment, scorer.score(train), reference, train, scorer.rewards)


def claim_folder(asked: Experiment) -> None:
    """Write the experiment into its output folder, or check that the one there is the same.

    Vectors may be added or taken away, evaluation may change; what is trained may not.
    """
    require_same_experiment(asked)
    with new_file(asked.output_dir / EXPERIMENT_FILE) as temporary:
        temporary.write_text(to_yaml(asked), "utf-8")


def require_same_experiment(asked: Experiment) -> None:
    """Refuse an output folder whose policies were trained by another experiment.

    Raises:
        IntegrityError: naming the sections that differ.
    """
    path = asked.output_dir / EXPERIMENT_FILE
    differences = _differences(path, asked) if path.is_file() else []
    if differences:
        raise IntegrityError(
            f"{path}: the folder holds another experiment ({', '.join(differences)} differ); "
            "fix: choose another `output_dir`, or delete the folder"
        )


def _differences(path: Path, after: Experiment) -> list[str]:
    """Sections that decide what is trained in which an experiment differs from the one that was written."""
    try:
        before = read_experiment(path)
    except InputError as error:
        problem = error.problems[0].problem
        fix = "choose another `output_dir`, or delete the folder"
        raise IntegrityError(f"{path}: is no experiment of this version ({problem}); fix: {fix}") from error
    sections: dict[str, tuple[Any, Any]] = {
        name: (getattr(before, name), getattr(after, name)) for name in ("lora", "data", "seed")
    }
    sections["objectives"] = (_deciding_objectives(before), _deciding_objectives(after))
    dtype = before.model.dtype if after.model.dtype == AUTO else after.model.dtype  # auto is what the folder has
    sections["model"] = (before.model, replace(after.model, dtype=dtype, trust_remote_code=False))
    sections["training"] = (_deciding_training(before), _deciding_training(after))
    sections["sweep.method"] = (before.sweep.method, after.sweep.method)
    return [name for name, (old, new) in sections.items() if old != new]


def _deciding_training(experiment: Experiment) -> Any:
    """`training` as it is written, but for `packing`: where `auto` comes out the same as before, nothing is other."""
    return {name: value for name, value in experiment.training.deciding().items() if name != "packing"}


def _deciding_objectives(experiment: Experiment) -> Any:
    """The objectives as they are written: secrets among the `kwargs` of rewards are not.

    Proxies decide what a method trains that scores answers of its own; of a comparison, each sweep has its own file.
    """
    experiment = experiment if experiment.method.new_answers else without_proxies(experiment)
    return without_secrets({name: asdict(objective) for name, objective in experiment.objectives.items()})


def point_folder(experiment: Experiment, weights: Weights) -> Path:
    """Where the point of a vector lies."""
    return experiment.output_dir / "points" / simplex.name(weights)


def finished_points(experiment: Experiment) -> Iterator[SweptPoint]:
    """The points of the experiment that are there and verify, in the experiment's order."""
    for weights in experiment.sweep.weights:
        folder = point_folder(experiment, weights)
        manifest = read_manifest(folder)
        if manifest is not None:
            cost, combined_from = Cost.of(manifest["cost"]), manifest.get("made_of")
            yield SweptPoint(simplex.name(weights), weights, folder, manifest["files"], cost, combined_from)


def failures(experiment: Experiment) -> list[dict[str, Any]]:
    """What is recorded of the points that failed: name, weights, reason."""
    records = [_failure_record(experiment, weights) for weights in experiment.sweep.weights]
    return [json.loads(path.read_text("utf-8")) for path in records if path.is_file()]


def _failure_record(experiment: Experiment, weights: Weights) -> Path:
    return experiment.output_dir / FAILED / f"{simplex.name(weights)}.json"
