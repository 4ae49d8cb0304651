"""Damage to the files of a run: what is published and was changed is refused, and what the error advises helps."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from modpo.base.errors import InputError, IntegrityError
from modpo.base.files import MANIFEST
from modpo.front.schema import read_front

from . import invariants
from .experiment import FILE, ROWS, finished, published_folders, results
from .harness import House, Outcome


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def flip_one(path: Path) -> None:
    """A bit in the middle."""
    flip(path, 4 * path.stat().st_size)


def truncate(path: Path) -> None:
    """Leave half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def delete(path: Path) -> None:
    """Remove a file."""
    path.unlink()


def edit(path: Path) -> None:
    """Change the first digit of a JSON file's values, and nothing else."""
    text = path.read_text("utf-8")
    changed = re.sub(r'(": "?)([0-9])', lambda m: f"{m[1]}{(int(m[2]) + 1) % 10}", text, count=1)
    assert changed != text
    path.write_text(changed, "utf-8")


def swap_in_symlink(path: Path) -> None:
    """The same content, behind a symlink."""
    case = next(folder for folder in path.parents if (folder / ROWS).is_file())
    elsewhere = case / f"elsewhere-{path.name}"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def put_beside(path: Path) -> None:
    """A file that a loader would take up."""
    (path.parent / "adapter_model.bin").write_bytes(b"\x80")


def published_files(folder: Path) -> list[Path]:
    """Every file of every published folder."""
    return [
        path
        for published in published_folders(folder)
        for path in sorted(published.rglob("*"))
        if path.is_file() and path.name != ".lock"
    ]


def kind(path: Path) -> str:
    """What a published file belongs to."""
    if path.name == MANIFEST and not path.parent.name.startswith("calibration-"):
        return "manifest"
    if "scored" in path.parts:
        return "calibration" if path.parent.name.startswith("calibration-") else "shard"
    if any(part.startswith("checkpoint-") for part in path.parts):
        return "checkpoint"
    return "measurement" if "evaluation" in path.parts else "adapter"


def flips(folder: Path, files: list[Path], count: int, seed: int = 0) -> list[Outcome]:
    """One bit at a time, anywhere in these files: each time, reading finds it."""
    rng, outcomes = Random(seed), []
    sizes = [path.stat().st_size for path in files]
    for path in rng.choices(files, weights=sizes, k=count):
        whole, bit = path.read_bytes(), rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        try:
            read_front(path.parent) if path.name == "front.json" else invariants.verify(path.parent)
            wrong = ["passed unseen"]
        except (IntegrityError, InputError):
            wrong = []
        path.write_bytes(whole)
        outcomes.append(Outcome(f"bit {bit} of {path.relative_to(folder)}", wrong))
    return outcomes


def damaged(house: House, folder: Path, path: Path, damage: Callable[[Path], None]) -> Outcome:
    """Damage to a run that was finished, or was killed in its middle: it is refused, naming the file, and what the
    line advises helps; or what was damaged is made again. Nothing else changes.
    """
    name, others = path.relative_to(folder), finished(folder)
    damage(path)
    case, done = f"{damage.__name__} {name}", house.server.run(folder)
    if done.code == 0 and "scored" in path.parts and _differing(house, folder) == {str(name)}:
        # A finished sweep reads its columns no more; one with another vector does. Only answers are never read again,
        # once what is fitted on them is kept.
        if "samples-" in path.parent.name:
            return _outcome(case, folder, [])
        elsewhere = house.copy(folder)
        done = house.server.run(elsewhere, ["sweep", FILE, "--set", "sweep={grid: 1}"])
        shutil.rmtree(elsewhere)
    mine = {path.parent, folder / "run" / "evaluation" / path.parent.name}  # a point made anew is measured anew
    others = {n: seen for n, seen in others.items() if (folder / n).parent not in mine}
    wrong = [f"C: {w}" for w in invariants.untouched(others, finished(folder))]
    if done.code == IntegrityError.exit_code:
        wrong += invariants.one_line(done.stderr, 1)
        line = next((x for x in done.stderr.splitlines() if x.startswith("error: ")), "")
        wrong += [] if path.parent.name in line else [f"does not name {path.parent.name}: {line}"]
        wrong += _take_advice(folder, line) or house.retried(folder)
    elif done.code == 0:
        wrong += [f"A: {n} differs, and nothing was said" for n in sorted(_differing(house, folder))]
    else:
        wrong += [f"D: exit code {done.code}: {done.stderr[-300:]}"]
    return _outcome(case, folder, wrong)


def _differing(house: House, folder: Path) -> set[str]:
    """What differs from the undisturbed run."""
    found, expected = results(folder), house.expected
    return {n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)}


def _outcome(case: str, folder: Path, wrong: list[str]) -> Outcome:
    if not wrong:
        shutil.rmtree(folder)
    return Outcome(case, wrong)


def _take_advice(folder: Path, line: str) -> list[str]:
    """Do what an error line says: delete a folder, or move a file away."""
    if advised := re.search(r"fix: delete (.+?)(?:, and | and |$)", line):
        shutil.rmtree(folder / advised[1])
        return []
    if line.endswith("fix: move it away"):
        (folder / line.removeprefix("error: ").partition(": is not one")[0]).unlink()
        return []
    return [f"D: no advice that could be taken: {line}"]
