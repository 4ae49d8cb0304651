"""How many processors this process may use, which is not how many there are: affinity and a control group's quota.

Torch starts a thread for each processor that the machine has. In a container with a quota of two they are still as many
as the whole machine has, and mostly wait for one another: everything takes many times as long.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from modpo.base.progress import say_once

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
NAMED_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # how a user says how many threads there are to be


def usable_processors(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int:
    """The processors that this process may be run on, or what its quota comes to if that is less; at least 1.

    Args:
        groups: where control groups are mounted, of version 1 or 2. own: the file that says which are this process's.
    """
    quotas = [max(1, math.ceil(quota)) for quota in _quotas(groups, own)]
    return min([_affinity(), *quotas])


def limit_threads(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> None:
    """Have torch, which is not imported yet, start no more threads than processors may be used.

    Nothing is done where all of them may be, or a user has said how many threads there are to be.
    """
    usable = usable_processors(groups, own)
    if usable < (os.cpu_count() or 1) and not any(name in os.environ for name in NAMED_BY):
        os.environ["OMP_NUM_THREADS"] = str(min(usable, _cores()))


def say_if_too_many_threads(threads: int) -> None:
    """Warn, once, of more threads than processors that may be used. They are the user's, and stay as they are."""
    usable = usable_processors()
    if threads > usable:
        problem = f"torch has {threads} threads, but this process may use {usable} processors: threads wait for others"
        say_once(f"warning: {problem}; fix: torch.set_num_threads({usable}), or OMP_NUM_THREADS={usable}")


def _affinity() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cores() -> int:
    """Processors that are no second thread of a core: torch by itself starts no more threads than these."""
    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    """The quotas, in processors, of this process's groups and of those around them."""
    for line in _text(own).splitlines():
        controllers, _, name = line.partition(":")[2].partition(":")
        mounts = [""] if not controllers else [controllers, "cpu"] if "cpu" in controllers.split(",") else []
        group = PurePosixPath(name.lstrip("/"))
        for mount in mounts:
            for folder in (group, *group.parents):
                yield from _quota(groups / mount / folder)


def _quota(folder: Path) -> Iterator[float]:
    """That of one group, if it has one: `cpu.max` of version 2, `cpu.cfs_*` of version 1."""
    old = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    for numbers in (_text(folder / "cpu.max").split(), " ".join(old).split()):
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers) and int(numbers[1]):
            yield int(numbers[0]) / int(numbers[1])


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
