"""Faults on purpose, for tests only: nothing happens unless the environment variable MODPO_FAULT is set.

    MODPO_FAULT=point:nth:action   the nth time (from 1) that this process reaches the point, do the action
    MODPO_FAULT=record:FILE        write each point that is reached, and the path it concerns, to the end of FILE

Points stand where a process may end or a disk may fail, as `reach("file.written", path)`. Actions:

    kill, term, int   the signal, sent to this process
    enospc, eio       what a full or failing disk makes the operating system say
    short             half of the file is written, then the disk fails
    raise             an exception that nobody expects
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from pathlib import Path

VARIABLE = "MODPO_FAULT"
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT} if os.name == "posix" else {}
ERRORS = {"enospc": errno.ENOSPC, "eio": errno.EIO, "short": errno.EIO}

_reached: Counter[str] = Counter()


def reach(point: str, path: Path) -> None:
    """Say that a point is reached; `path` is the file or folder that it concerns, as it is on disk now."""
    fault = os.environ.get(VARIABLE)
    if fault:
        _inflict(fault, point, path)


def _inflict(fault: str, point: str, path: Path) -> None:
    at, _, rest = fault.partition(":")
    if at == "record":
        with open(rest, "a", encoding="utf-8") as file:
            file.write(f"{point}\t{path}\n")
        return
    nth, _, action = rest.partition(":")
    if point != at:
        return
    _reached[point] += 1
    if _reached[point] == int(nth):
        _act(action, path)


def _act(action: str, path: Path) -> None:
    if action in SIGNALS:
        os.kill(os.getpid(), SIGNALS[action])
        return
    if action == "short":
        _cut(path)
    if action in ERRORS:
        raise OSError(ERRORS[action], os.strerror(ERRORS[action]), str(path))
    raise RuntimeError(f"the fault {action!r} at {path}")


def _cut(path: Path) -> None:
    """Leave half of a file; of a folder's files, the largest."""
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    largest = max(files, key=lambda p: p.stat().st_size, default=None)
    if largest is not None and largest.is_file():
        os.truncate(largest, largest.stat().st_size // 2)
