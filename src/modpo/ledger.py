"""The ledger of a sweep: what every stage took, from scratch, as `ledger.json`.

What was found in a cache or kept from an earlier run counts with what it took when it was made. A stage that several
points share stands there once. Measuring is no cost of a method: it stands there and is not added up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modpo.costs import NOTHING, Cost
from modpo.decode import WrongFieldError, decode
from modpo.experiment.method_checks import NEW_ANSWERS
from modpo.experiment.sections import Experiment
from modpo.progress import duration
from modpo.publish import MANIFEST, read_manifest, read_sealed, write_sealed
from modpo.sample import answers_cost
from modpo.scoring import Costs, ScoredData
from modpo.steering import CONTINUOUS
from modpo.sweep import TrainedPoint

FILE = "ledger.json"
SCHEMA = 1


@dataclass(frozen=True)
class Entry:
    """A stage and what it took."""

    stage: str  # "sft", "reward kind", "reference log-probs", "train kind0.5-brief0.5", "measure ..."
    cost: Cost
    method: str | None = None  # whose training it is; None: shared by all methods
    counts: bool = True  # measuring does not


@dataclass(frozen=True)
class Ledger:
    """Everything `ledger.json` says."""

    method: str
    models: int  # points that came of it
    entries: list[Entry]
    unknown: list[str] = field(default_factory=list)  # stages whose cost was not written down, by older versions

    @property
    def total(self) -> Cost:
        """What the front took from scratch."""
        return sum((entry.cost for entry in self.entries if entry.counts), NOTHING)

    @property
    def device_hours(self) -> float:
        """Of the whole front."""
        return sum(entry.cost.device_hours for entry in self.entries if entry.counts)


def sweep_ledger(experiment: Experiment, scored: ScoredData, trained: list[TrainedPoint], measured: Costs) -> Ledger:
    """What a sweep took.

    Args:
        scored: the data that was trained on.
        measured: what measuring each policy took, by its name.
    """
    method = CONTINUOUS if experiment.sweep.mode == CONTINUOUS else experiment.sweep.method
    shared, own = _shared(experiment, scored, method), dict(_trainings(experiment, trained))
    measuring = {f"measure {name}": cost for name, cost in measured.items()}
    entries = [Entry(stage, cost) for stage, cost in shared.items() if cost is not None]
    entries += [Entry(stage, cost, method) for stage, cost in own.items()]
    entries += [Entry(stage, cost, method, counts=False) for stage, cost in measuring.items() if cost is not None]
    unknown = [stage for stage, cost in {**shared, **measuring}.items() if cost is None]
    return Ledger(method, len(trained), entries, unknown)


def _shared(experiment: Experiment, scored: ScoredData, method: str) -> Costs:
    """The stages before training that a method needs."""
    costs = dict(_stages(experiment))
    scoring = scored.costs()
    if method not in NEW_ANSWERS:
        return costs | scoring
    # It learns from answers of its own: of the scored data it takes the calibration, and what that was fitted on.
    if not scored.fitting:
        costs.pop("sample", None)
        return costs
    return costs | {stage: cost for stage, cost in scoring.items() if not stage.startswith(("tokens", "reference"))}


def _stages(experiment: Experiment) -> Iterator[tuple[str, Cost | None]]:
    """Those that trained the model and the rewards, and sampled the data."""
    manifest = _manifest(experiment.model.model_name_or_path)
    if "demonstrations" in manifest:
        yield "sft", Cost.of(manifest["cost"])
    if experiment.sample is not None:
        yield "sample", answers_cost(Path(experiment.data.path))
    for name, objective in experiment.objectives.items():
        source = objective.reward and (objective.reward.reward_model or objective.reward.implicit)
        if source and "cost" in (manifest := _manifest(source)):
            yield f"train reward {name}", Cost.of(manifest["cost"])


def _manifest(folder: str) -> dict[str, Any]:
    """Of a model that modpo trained; empty for another."""
    with suppress(OSError, ValueError):
        return read_sealed(Path(folder) / MANIFEST)
    return {}


def _trainings(experiment: Experiment, trained: list[TrainedPoint]) -> Iterator[tuple[str, Cost]]:
    """Of the policies that were trained, each once, however many points were made of it."""
    for point in trained:
        if point.made_of is None:
            yield f"train {point.name}", point.cost
        else:
            folder = experiment.output_dir / point.made_of
            for source in [folder] if (folder / MANIFEST).is_file() else sorted(folder.iterdir()):
                manifest = read_manifest(source)
                if manifest is not None:
                    yield f"train {source.relative_to(experiment.output_dir).as_posix()}", Cost.of(manifest["cost"])


def took(ledger: Ledger) -> str:
    """The total in a few words."""
    total = ledger.total
    generated = f", {total.tokens_generated:,} tokens generated" if total.tokens_generated else ""
    return (
        f"{duration(total.seconds)}, {total.tokens:,} tokens trained on{generated}, "
        f"{ledger.device_hours / ledger.models:.3g} device-hours a model"
    )


# --- on disk ------------------------------------------------------------------------------------------------


def write_ledger(ledger: Ledger, folder: Path) -> None:
    """Write `ledger.json` into a sweep's folder."""
    write_sealed(
        folder / FILE,
        {
            "schema": SCHEMA,
            **asdict(ledger),
            "total": {**ledger.total.written(), "device_hours": ledger.device_hours},
            "device_hours_per_model": ledger.device_hours / ledger.models,
        },
    )


def read_ledger(folder: Path) -> Ledger | None:
    """The ledger of a sweep's folder; None where there is none that this version can read."""
    try:
        read = json.loads((folder / FILE).read_text("utf-8"))
        return decode(Ledger, read) if read.get("schema") == SCHEMA else None  # type: ignore[no-any-return]
    except (OSError, ValueError, AttributeError, WrongFieldError):
        return None
