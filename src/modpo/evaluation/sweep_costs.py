"""The cost of a sweep, gathered from the manifests of all that it was built from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from modpo.base.costs import Cost
from modpo.base.files import MANIFEST, read_manifest, read_sealed
from modpo.experiment.sections import Resolved
from modpo.front.ledger import Entry, Ledger
from modpo.policies.point import SweptPoint
from modpo.scored.answers import SAMPLE, answers_cost
from modpo.scored.calibrator import CALIBRATED_ON
from modpo.scored.data import Costs, ScoredData


def sweep_ledger(experiment: Resolved, scored: ScoredData, trained: list[SweptPoint], measured: Costs) -> Ledger:
    """The cost of a sweep.

    Args:
        scored: the data that was trained on.
        measured: the cost of measuring each policy, by its name.
    """
    method = experiment.method.name
    shared, own = _shared(experiment, scored), dict(_trainings(experiment, trained))
    measuring = {f"measure {name}": cost for name, cost in measured.items()}
    entries = [Entry(stage, cost) for stage, cost in shared.items() if cost is not None]
    entries += [Entry(stage, cost, method) for stage, cost in own.items()]
    entries += [Entry(stage, cost, method, counts=False) for stage, cost in measuring.items() if cost is not None]
    unknown = [stage for stage, cost in {**shared, **measuring}.items() if cost is None]
    return Ledger(method, len(trained), entries, unknown)


def _shared(experiment: Resolved, scored: ScoredData) -> Costs:
    """The stages before training that the method needs."""
    costs = dict(_stages(experiment))
    if not experiment.method.new_answers:
        return costs | scored.costs()
    # It learns from answers of its own: of the scored data it takes the calibrations, and what they were fitted on.
    methods = {objective.calibration for objective in experiment.objectives.values()}
    if "bradley_terry" in methods or ("standardise" in methods and CALIBRATED_ON not in scored.fitting):
        read = ("tokens", "reference")  # to be trained on
        return costs | {stage: cost for stage, cost in scored.costs().items() if not stage.startswith(read)}
    if not any(_manifest(source).get("of_data") for source in _learned(experiment).values()):
        costs.pop(SAMPLE, None)
    return costs | scored.fitting


def _stages(experiment: Resolved) -> Iterator[tuple[str, Cost | None]]:
    """Those that trained the model and the rewards, and sampled the data."""
    manifest = _manifest(experiment.model.model_name_or_path)
    if "demonstrations" in manifest:
        yield "sft", Cost.of(manifest["cost"])
    if experiment.sample is not None:
        yield SAMPLE, answers_cost(Path(experiment.data.path))
    for name, source in _learned(experiment).items():
        if "cost" in (manifest := _manifest(source)):
            yield f"train reward {name}", Cost.of(manifest["cost"])


def _learned(experiment: Resolved) -> dict[str, str]:
    """The model or adapter behind each reward that reads one, by objective."""
    rewards = {name: o.reward for name, o in experiment.objectives.items() if o.reward is not None}
    sources = {name: reward.reward_model or reward.implicit for name, reward in rewards.items()}
    return {name: source for name, source in sources.items() if source is not None}


def _manifest(folder: str) -> dict[str, Any]:
    """Of a model that modpo trained; empty for another."""
    with suppress(OSError, ValueError):
        return read_sealed(Path(folder) / MANIFEST)
    return {}


def _trainings(experiment: Resolved, trained: list[SweptPoint]) -> Iterator[tuple[str, Cost]]:
    """Of the policies that were trained, each once, however many points it gave."""
    for point in trained:
        if point.combined_from is None:
            yield f"train {point.name}", point.cost
    for combined_from in dict.fromkeys(point.combined_from for point in trained if point.combined_from is not None):
        folder = experiment.output_dir / combined_from
        for source in [folder] if (folder / MANIFEST).is_file() else sorted(folder.iterdir()):
            manifest = read_manifest(source)
            if manifest is not None:
                yield f"train {source.relative_to(experiment.output_dir).as_posix()}", Cost.of(manifest["cost"])
