"""What must hold after a fault, whichever it was. Each check returns what is wrong, in words; nothing is well."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from modpo.base.errors import EnvironmentFault, IntegrityError, ModpoError
from modpo.base.files import LEFTOVER, MANIFEST, is_own_file, locked, read_manifest, read_sealed, sha256_file
from modpo.front.schema import read_front
from modpo.scored.columns import Column

from .experiment import FILE, published_folders

INTERRUPTED = {"int": 130, "term": 143}
DISK = ("enospc", "eio", "short")


def visible_verifies(folder: Path) -> list[str]:
    """B: whatever a reader can see is whole."""
    wrong = []
    for path in published_folders(folder):
        wrong += _problems(lambda path=path: verify(path))
    run = folder / "run"
    for name, check in _CHECKS.items():
        if (run / name).exists():
            wrong += [f"{name}: {problem}" for problem in _problems(lambda name=name, check=check: check(run / name))]
    for record in (run / "failed").glob("*.json"):
        wrong += _problems(lambda record=record: json.loads(record.read_text("utf-8"))["reason"])
    return wrong


def verify(path: Path) -> None:
    """Read a published folder as modpo does.

    Raises:
        IntegrityError: it does not verify.
    """
    if "scored" not in path.parts:
        if read_manifest(path) is None:
            raise IntegrityError(f"{path}: has no manifest")
        return
    try:
        manifest = read_sealed(path / MANIFEST)
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path}: {error}") from error
    if path.name.startswith("calibration-"):
        return
    identity = manifest["identity"]
    column = Column(path, manifest["kind"], identity, manifest["rows"], identity["shard_groups"])
    for name, shard in column.finished_shards().items():
        if not is_own_file(path, name) or sha256_file(path / name) != shard["sha256"]:
            raise IntegrityError(f"{path / name}: does not verify")


def untouched(before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]]) -> list[str]:
    """C: what was finished before is the same file with the same content."""
    return [f"{name}: finished before, and written again" for name in before if after.get(name) != before[name]]


def left_right(action: str, code: int | None, stderr: str, folder: Path) -> list[str]:
    """D: the exit code says what happened, and so does one line."""
    failed = list((folder / "run" / "failed").glob("*.json"))
    expected: set[int | None]
    if action == "kill":
        expected = {-signal.SIGKILL}
    elif action in INTERRUPTED:
        expected = {INTERRUPTED[action]}
    elif action in DISK:
        expected = {EnvironmentFault.exit_code}
    else:
        expected = {5 if failed else 1}
    wrong = [] if code in expected else [f"exit code {code}, expected {sorted(map(str, expected))}"]
    return wrong + one_line(stderr, 0 if action == "kill" else 1)


def one_line(stderr: str, expected: int) -> list[str]:
    """So many error lines, with advice, and no traceback."""
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    wrong = [] if len(lines) == expected else [f"{len(lines)} error lines, expected {expected}: {stderr[-300:]!r}"]
    wrong += [f"no advice: {line}" for line in lines if "; fix: " not in line]
    return wrong + (["a traceback"] if "Traceback" in stderr else [])


def nothing_left(folder: Path, orphans: bool) -> list[str]:
    """E: no process and no lock outlives the run."""
    wrong = ["a process was left behind"] if orphans else []
    for lock in folder.rglob(".lock"):
        try:
            with locked(lock.parent):
                pass
        except EnvironmentFault:
            wrong.append(f"{lock}: is held")
    return wrong


def nothing_unfinished(folder: Path) -> list[str]:
    """After a run that reached its end, no temporary file or folder lies anywhere."""
    found = (p for place in ("run", "cache") for p in (folder / place).rglob(".*"))
    return [f"{p.relative_to(folder)}: left over" for p in found if LEFTOVER.fullmatch(p.name) or ".work-" in p.name]


def _problems(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except (ModpoError, OSError, ValueError, KeyError, AssertionError) as error:
        return [f"{type(error).__name__}: {error}"]
    return []


def _lines(path: Path) -> Iterator[object]:
    return (json.loads(line) for line in path.read_text("utf-8").split("\n") if line)


def _ends_with(path: Path, ending: bytes) -> None:
    assert path.read_bytes().rstrip().endswith(ending), f"{path.name} is cut off"


def _experiment(path: Path) -> None:
    assert yaml.safe_load(path.read_text("utf-8"))["seed"] == 0


_CHECKS: dict[str, Callable[[Path], object]] = {
    FILE: _experiment,
    "front.json": lambda path: read_front(path.parent),
    "front.csv": lambda path: _ends_with(path, b""),
    "responses.jsonl": lambda path: list(_lines(path)),
    "front.png": lambda path: _ends_with(path, b"IEND\xaeB`\x82"),
    "report.html": lambda path: _ends_with(path, b"</html>"),
}
