"""A sweep's folder in which every text is a stranger's, and points that were not trained here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from modpo.base.files import MANIFEST, SEAL, sha256_file, write_sealed
from modpo.front.schema import FailedPoint, FrontObjective, Point, write_front
from tests.report.fronts import make_front, write_responses
from tests.security.yard import Yard


def run_folder(folder: Path, text: str) -> Path:
    """A measured sweep with `text` in the place of every text that `front.json` and `responses.jsonl` hold."""
    folder.mkdir(exist_ok=True)
    plain = make_front(folder, 2)
    names = {o.name: f"{n}{text}" for n, o in enumerate(plain.objectives)}
    front = replace(
        plain,
        objectives=[FrontObjective(names[o.name], o.maximize, unit=text, measured_by=text) for o in plain.objectives],
        reference=_renamed(plain.reference, names),
        points=[_renamed(point, names, f"{n}{text}") for n, point in enumerate(plain.points)],
        hypervolume=replace(plain.hypervolume, reference_point=dict.fromkeys(names.values(), 0.0)),
        evaluation={**plain.evaluation, "model": text, text: {text: [text]}},
        failed=[FailedPoint(text, {}, text)],
    )
    write_front(front)
    write_responses(front, [text, [{"role": text, "content": text}]], lambda policy, i: text)
    return folder


def _renamed(point: Point, names: dict[str, str], name: str | None = None) -> Point:
    scores = {names[key]: score for key, score in point.scores.items()}
    weights = {names[key]: weight for key, weight in point.weights.items()} if point.weights else None
    return replace(point, name=name or point.name, scores=scores, weights=weights)


def planted_point(yard: Yard, listed: str) -> Path:
    """A point of the yard's experiment that was not trained here, with a manifest that lists one file."""
    folder = yard.out / "points" / "good0.75-brief0.25"
    shutil.copytree(yard.tiny_adapter, folder)
    about = {"key": "", "weights": {}, "cost": {"seconds": 1.0, "tokens": 1}}
    write_sealed(folder / MANIFEST, {**about, "files": {listed: sha256_file(folder / listed)}})
    return folder


def sealed_point(yard: Yard, folder: Path) -> Path:
    """The yard's adapter as a point, sealed as if it had been trained here."""
    shutil.copytree(yard.adapter, folder)
    about = {"key": "", "weights": {}, "cost": {"seconds": 1.0, "tokens": 1}}
    files = {path.name: sha256_file(path) for path in folder.iterdir()}
    write_sealed(folder / MANIFEST, {**about, "files": files})
    return folder


def evaluated_with_it(yard: Yard) -> list[str]:
    """`modpo evaluate` of the yard's experiment, the yard's adapter being its only point."""
    sealed_point(yard, yard.out / "points" / "good0.75-brief0.25")
    return ["evaluate", *yard.experiment(evaluation={"max_new_tokens": 4, "bootstrap": 20})[1:]]


def chatted_with_it(yard: Yard) -> list[str]:
    """`modpo chat` with a front in which the yard's adapter stands for every point."""
    yard.out.mkdir()
    front = make_front(yard.out, 2)
    for point in front.points:
        sealed_point(yard, yard.out / str(point.adapter))
    write_front(front)
    (yard.out / "experiment.yaml").write_text(json.dumps(yard.sections()))
    return ["chat", str(yard.out)]


def edit_front(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change `front.json` without the checks of `write_front`."""
    path = folder / "front.json"
    front = json.loads(path.read_text("utf-8"))
    front.pop(SEAL, None)  # who plants a front needs none
    edit(front)
    path.write_text(json.dumps(front), "utf-8")
