"""The front: what a sweep has reached, as `front.json` and `front.csv`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

from modpo.base.costs import Cost
from modpo.base.csv_text import csv_text
from modpo.base.decode import WrongFieldError, decode
from modpo.base.errors import InputError, IntegrityError, NumericError, Problem
from modpo.base.files import SEAL, new_file, sealed, unsealed
from modpo.base.simplex import Weights, read_weights
from modpo.front.audit import Audit
from modpo.front.pareto import (
    Hypervolume,
    Score,
)
from modpo.scored.calibration import UNCALIBRATED, Calibration

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 1
FILE = "front.json"
REFERENCE = "reference"  # the reference policy's name, here and in responses.jsonl
_MEASURE_AGAIN = "measure it again"
VERDICTS = ("", "undertrained", "broken")  # of an audit
ROUNDING = 1e-9  # by which R2 may leave [0, 1]


@dataclass(frozen=True)
class HeldOut:
    """How often a trained reward orders held-out pairs as they are labelled; standard error over prompts."""

    accuracy: float
    se: float
    pairs: int
    prompts: int


@dataclass(frozen=True)
class FrontObjective:
    """An objective as it was measured; scores are raw rewards, in `unit`, larger is better if `maximize`."""

    name: str
    maximize: bool = True
    unit: str = ""
    scale: float = 1.0  # by which training multiplied the calibrated reward; scores are raw, without either
    measured_by: str = ""  # where the numbers come from
    proxy: str = ""  # what was trained on in the place of its reward, see `modpo.experiment.proxy`
    separate: bool = False  # by a scorer that no policy was trained on, see `evaluation.rewards`
    calibration: Calibration = UNCALIBRATED  # as it was fitted for training
    held_out: HeldOut | None = None  # of a reward that was trained


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error."""

    mean: float
    se: float


@dataclass(frozen=True)
class Point:
    """A policy: one point of the sweep, or the reference (without weights, adapter, contribution and audit)."""

    name: str
    scores: dict[str, Score]
    kl: Estimate  # from the reference policy, nats per answer; of best of n an upper bound
    response_length: Estimate  # tokens
    cost: Cost  # of its training; where one training made several points, a share of it
    dominated: bool  # by another point of the sweep
    weights: Weights | None = None
    adapter: str | None = None  # path relative to the front's folder
    best_of_n: int | None = None  # it has no adapter, but answers with the best of so many answers of the reference
    hypervolume_contribution: float | None = None
    audit: Audit | None = None  # None also where no two held-out answers differ in their rewards


@dataclass(frozen=True)
class FailedPoint:
    """A point that was asked for and has no result."""

    name: str
    weights: Weights
    reason: str


@dataclass(frozen=True)
class Front:
    """Everything `front.json` says."""

    folder: Path
    objectives: list[FrontObjective]
    reference: Point
    points: list[Point]
    hypervolume: Hypervolume
    evaluation: dict[str, Any] = field(default_factory=dict)  # settings: seed, prompts, confidence, ...
    failed: list[FailedPoint] = field(default_factory=list)
    continuous: Cost | None = None  # of the one training that gave all points; None: each was trained by itself

    def to_pandas(self) -> DataFrame:
        """The policies as a table, the reference first: the columns of `front.csv`."""
        from pandas import DataFrame

        return DataFrame(_rows(self)).set_index("name")


def read_front(folder: str | Path) -> Front:
    """Read `front.json` of a sweep's folder.

    Raises:
        InputError: no such file, not JSON, not a front, a newer schema, or a wrong field, named by its path.
        IntegrityError: it holds the sha256 of itself, and was changed.
    """
    path = Path(folder) / FILE
    try:
        text = path.read_bytes().decode()  # line breaks as they are: they are sealed too
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        fix = "name the folder of an evaluated sweep, or measure it first"
        raise InputError(Problem(str(path), "", "no such file", fix)) from None
    except UnicodeDecodeError as error:
        raise InputError(Problem(str(path), "", f"not UTF-8: {error.reason}", _MEASURE_AGAIN)) from None
    return _parse(text, path)


def write_front(front: Front) -> None:
    """Write `front.csv`, then `front.json`, into `front.folder`; each appears whole or not at all.

    Raises:
        NumericError: a number that is NaN or infinite. InputError: a front that `read_front` would refuse.
        OSError: the folder cannot be written. Nothing is written in the first two cases.
    """
    content = {"schema": SCHEMA} | {key: value for key, value in asdict(front).items() if key != "folder"}
    for key in ("weights", "best_of_n", "hypervolume_contribution", "audit"):
        del content["reference"][key]
    _refuse_nonfinite(content, "")
    text = sealed(content)
    _parse(text, front.folder / FILE)  # what is written can be read
    for name, written in (("front.csv", csv_text(_rows(front))), (FILE, text)):
        with new_file(front.folder / name) as temporary:
            temporary.write_text(written, "utf-8")


def _rows(front: Front) -> list[dict[str, Any]]:
    """One flat row a policy, the reference first."""
    names = [o.name for o in front.objectives]
    rows: list[dict[str, Any]] = []
    for policy in [front.reference, *front.points]:
        row: dict[str, Any] = {"name": policy.name}
        row |= {f"weight:{name}": (policy.weights or {}).get(name) for name in names}
        for name in names:
            row |= {f"{name}_{key}": value for key, value in asdict(policy.scores[name]).items()}
        for group in ("kl", "response_length", "cost"):
            row |= {f"{group}_{key}": value for key, value in asdict(getattr(policy, group)).items()}
        row |= {f"audit_{key}": getattr(policy.audit, key, None) for key in ("slope", "r2")}
        row["dominated"] = policy.dominated
        row["hypervolume_contribution"] = policy.hypervolume_contribution
        row["adapter"] = policy.adapter
        row["best_of_n"] = policy.best_of_n
        rows.append(row)
    return rows


def _refuse_nonfinite(value: Any, at: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise NumericError(f"{FILE}:{at.lstrip('.')}: {value} is not a finite number; nothing was written")
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_nonfinite(item, f"{at}.{key}")


def _parse(text: str, path: Path) -> Front:
    def refuse(field: str, problem: str, fix: str = _MEASURE_AGAIN) -> NoReturn:
        raise InputError(Problem(str(path), field, problem, fix))

    try:
        content = json.loads(text, parse_constant=lambda name: refuse("", f"{name} is not a finite number"))
    except json.JSONDecodeError as error:
        refuse("", f"not JSON: {error.msg} in line {error.lineno}")
    except (ValueError, RecursionError) as error:  # a number of too many digits; nested too deeply
        refuse("", f"not readable as JSON: {error}")
    schema = content.get("schema") if isinstance(content, dict) else None
    if type(schema) is not int:
        refuse("schema", "missing: this is no front of a sweep", "name the folder of an evaluated sweep")
    if schema > SCHEMA:
        refuse("schema", f"{schema} is newer than {SCHEMA}, the newest known here", "update modpo")
    _require_unchanged(text, content, path)
    try:
        front: Front = decode(Front, content | {"folder": path.parent})
    except WrongFieldError as wrong:
        refuse(wrong.field, wrong.problem)
    if problems := [Problem(str(path), *trouble, _MEASURE_AGAIN) for trouble in _troubles(front)]:
        raise InputError(problems)
    names = [o.name for o in front.objectives]
    for i, point in enumerate(front.points):
        read_weights(point.weights, names, where=str(path), field=f"points.{i}.weights")
    return front


def _require_unchanged(text: str, content: dict[str, Any], path: Path) -> None:
    """Hold a front against its seal. One that was written by hand needs none."""
    if not any(key == SEAL or re.fullmatch("[0-9a-f]{64}", str(value)) for key, value in content.items()):
        return
    try:
        unsealed(text)
    except ValueError as error:
        fix = f"{_MEASURE_AGAIN}, or take {SEAL!r} out of it if the change is yours"
        raise IntegrityError(f"{path}: {error}; fix: {fix}") from None


def _troubles(front: Front) -> Iterator[tuple[str, str]]:
    """(field, problem) of what contradicts itself, though each field is well-formed."""
    names = [o.name for o in front.objectives]
    if not names or len(set(names)) < len(names):
        yield "objectives", f"expected distinct names, got {names}"
    if set(front.hypervolume.reference_point) != set(names):
        yield "hypervolume.reference_point", f"expected one number for each of {names}"
    policies = {"reference": front.reference} | {f"points.{i}": point for i, point in enumerate(front.points)}
    seen = {""}
    for at, policy in policies.items():
        if policy.name in seen or (policy.name == REFERENCE) != (at == "reference"):
            yield f"{at}.name", f"{policy.name!r} is empty, taken, or not {REFERENCE!r} where it must be"
        seen.add(policy.name)
        if set(policy.scores) != set(names):
            yield f"{at}.scores", f"expected one score for each of {names}"
        adapter = PurePosixPath(policy.adapter or "")
        if adapter.is_absolute() or ".." in adapter.parts:
            yield f"{at}.adapter", f"{policy.adapter!r} leaves the folder"
        if policy.audit:
            yield from _audit_troubles(policy.audit, f"{at}.audit")


def _audit_troubles(audit: Audit, at: str) -> Iterator[tuple[str, str]]:
    if not -ROUNDING <= audit.r2 <= 1 + ROUNDING:
        yield f"{at}.r2", f"expected a number from 0 to 1, got {audit.r2:g}"
    for name in ("pairs", "prompts"):
        if getattr(audit, name) < 1:
            yield f"{at}.{name}", f"expected at least 1, got {getattr(audit, name)}"
    if audit.verdict not in VERDICTS:
        yield f"{at}.verdict", f"expected one of {VERDICTS}, got {audit.verdict!r}"
