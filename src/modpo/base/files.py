"""Artefacts appear whole or not at all, and do not change unseen.

Everything is written into a temporary sibling, flushed to disk and renamed. What a crash leaves behind is called
`.tmp-<8 hex digits>-<name>`, is never read, and goes with `remove_leftovers`. Manifests are sealed: they hold the
sha256 of themselves beside those of the files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from modpo.base.errors import EnvironmentFault, IntegrityError, ModpoError, NumericError
from modpo.base.fault_points import reach
from modpo.base.finite import nonfinite_tensors
from modpo.base.progress import SECONDS_BETWEEN_LINES, say

MANIFEST = "manifest.json"
SEAL = "sha256"  # the key of a sealed JSON object that holds the hash of the others
LEFTOVER = re.compile(r"\.tmp-[0-9a-f]{8}-.+", re.DOTALL)
FULL = 1 << 20  # bytes; a disk with less left is taken to be full when writing fails


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value, the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


# --- writing ------------------------------------------------------------------------------------------------


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Write the yielded temporary file; on leaving without error it becomes `path`."""
    _make_folder(path.parent)
    temporary = _temporary(path)
    try:
        with _disk_errors(path.parent):
            reach("file.begun", path)
            yield temporary
            reach("file.written", temporary)
        _fsync(temporary)
        reach("file.flushed", temporary)
        temporary.replace(path)
        reach("file.renamed", path)
        _fsync(path.parent)
    finally:
        _remove(temporary)


@contextmanager
def new_folder(path: Path, about: dict[str, Any]) -> Iterator[Path]:
    """Fill the yielded temporary folder; on leaving without error it becomes `path`, with a manifest.

    The manifest holds `about` and the sha256 of every file. A folder already at `path` is replaced.

    Raises:
        NumericError: weights among the files are NaN or infinite; what stood at `path` still does.
    """
    _make_folder(path.parent)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        with _disk_errors(path.parent):
            reach("folder.begun", temporary)
            yield temporary
            reach("folder.filled", temporary)
        _require_finite(temporary)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        hashes = {p.relative_to(temporary).as_posix(): sha256_file(p) for p in files}
        write_sealed(temporary / MANIFEST, {**about, "files": hashes})
        for entry in temporary.rglob("*"):
            _fsync(entry)
        reach("folder.flushed", temporary)
        _put_in_place(temporary, path)
    finally:
        _remove(temporary)


def _require_finite(folder: Path) -> None:
    """Refuse weights that no model can work with: a policy, a reward, a checkpoint."""
    for path in sorted(folder.rglob("*.safetensors")):
        if broken := nonfinite_tensors(path):
            fix = "lower the learning rate, and train again"
            raise NumericError(f"{path.name}: {broken[0]} is not finite, so it is not published; fix: {fix}")


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename a folder. What is there is moved away whole: deleted in its place, half of it could be seen."""
    replaced = _temporary(path) if os.path.lexists(path) else None
    if replaced:
        path.rename(replaced)
    try:
        reach("folder.cleared", temporary)
        temporary.rename(path)
    except BaseException:
        if replaced:
            replaced.rename(path)
        raise
    reach("folder.renamed", path)
    _fsync(path.parent)
    if replaced:
        _remove(replaced)


def write_json(path: Path, value: Any) -> None:
    """Publish a JSON file. NaN and infinity are refused: no other program reads them."""
    with new_file(path) as temporary:
        temporary.write_text(_json_text(value), "utf-8")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Publish a JSON object together with the sha256 of itself, for `read_sealed`."""
    with new_file(path) as temporary:
        temporary.write_text(sealed(value), "utf-8")


def sealed(value: dict[str, Any]) -> str:
    """The text of a JSON object together with the sha256 of itself, for `unsealed`."""
    plain = json.loads(_json_text(value))  # as it will be read: keys are strings, and tuples lists
    return _json_text({**plain, SEAL: sha256_json(plain)})


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _temporary(path: Path) -> Path:
    return path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")


def _make_folder(folder: Path) -> None:
    """Like `mkdir -p`, and what it makes is on disk."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync(folder.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """What a full or failing disk makes other libraries raise, as the OSError that it is."""
    try:
        yield
    except (OSError, ModpoError):
        raise
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))  # of those written in Rust: safetensors, tokenizers
        full = shutil.disk_usage(folder).free < FULL  # torch says only that writing failed
        code = int(found[1]) if found else errno.ENOSPC if full else None
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(folder)) from error


# --- leftovers ----------------------------------------------------------------------------------------------


def remove_leftovers(folder: Path) -> None:
    """Delete what dead processes left among the entries of `folder`. Only under its lock: it might be alive."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if LEFTOVER.fullmatch(path.name):
            _remove(path)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run left half written, in a run's folder and those right below it. Only under its lock: it
    might be somebody's work.
    """
    remove_leftovers(folder)
    for below in list(folder.iterdir()) if folder.is_dir() else []:
        remove_leftovers(below)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# --- reading ------------------------------------------------------------------------------------------------


def read_sealed(path: Path) -> dict[str, Any]:
    """The JSON object that `write_sealed` wrote, without its seal.

    Raises:
        ValueError: it is something else, or one byte of it was changed.
    """
    return unsealed(path.read_bytes().decode())


def unsealed(text: str) -> dict[str, Any]:
    """The JSON object of a text that `sealed` made, without its seal.

    Raises:
        ValueError: it is something else, or one byte of it was changed.
    """
    try:
        value: dict[str, Any] = json.loads(text)
        if not isinstance(value, dict) or value.pop(SEAL, None) is None:
            raise ValueError("it has no sha256 of itself")
        # The text too is as it would be written: a number may be spelled in several ways.
        written = sealed(value)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if written != text:
        raise ValueError("it was changed")
    return value


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a published folder, None where there is none.

    The folder holds just the files of its manifest, as regular files; hidden ones, which file managers leave, are
    not looked at. The folder itself may be reached through a symlink.

    Raises:
        IntegrityError: the manifest is broken or was changed, or the files are not those it lists.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    fix = f"fix: delete {folder} and run again"
    try:
        if not is_own_file(folder, MANIFEST):
            raise ValueError("it is no regular file")
        manifest = read_sealed(path)
        hashes = dict(manifest["files"].items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path}: is not a manifest ({error}); {fix}") from error
    for name, expected in hashes.items():
        if not is_own_file(folder, name) or sha256_file(folder / name) != expected:
            raise IntegrityError(f"{folder / name}: is missing or was changed; {fix}")
    if foreign := sorted(_visible_files(folder) - hashes.keys() - {MANIFEST}):
        raise IntegrityError(f"{folder / foreign[0]}: is not one of the files in {MANIFEST}; fix: move it away")
    return manifest


def is_own_file(folder: Path, name: str) -> bool:
    """Whether `name` is a regular file inside `folder`: not a symlink, nor behind one, nor outside."""
    try:
        inside = (folder / name).resolve() == folder.resolve() / name
    except (ValueError, OSError, RuntimeError):  # a NUL in the name; symlinks in a circle
        return False
    return inside and not Path(name).is_absolute() and (folder / name).is_file()


def _visible_files(folder: Path) -> set[str]:
    """Everything below a folder that is no folder, by relative path, unless some part of that begins with a dot."""
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return {path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)}


# --- locks --------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path, *, wait: bool = False, progress: Callable[[], str] | None = None) -> Iterator[None]:
    """Hold `folder` alone. The lock belongs to the process: it ends with it, however it ends.

    Args:
        wait: until another process lets go of it, saying so.
        progress: how far that one is, in a few words.

    Raises:
        EnvironmentFault: another process is at work there, unless this one is to wait.
    """
    _make_folder(folder)
    lock = FileLock(folder / ".lock")
    timeout = 0.0
    while not _acquired(lock, timeout):
        if not wait:
            raise EnvironmentFault(f"{folder}: another process is writing here; fix: wait for it, or stop it")
        far = f", {progress()}" if progress else ""
        say(f"{folder}: waiting for another process, which is at work here{far}")
        timeout = SECONDS_BETWEEN_LINES
    try:
        reach("lock.taken", folder)
        yield
    finally:
        lock.release()


def _acquired(lock: FileLock, timeout: float) -> bool:
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return False
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise EnvironmentFault(f"{lock.lock_file}: is a symlink; fix: delete it") from error
    return True
