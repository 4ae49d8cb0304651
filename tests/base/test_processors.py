"""Threads follow a control group's quota and the process's affinity."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import modpo.base.processors as processors
from modpo.base.processors import NAMED_BY, limit_threads, say_if_too_many_threads, usable_processors
from modpo.base.progress import say_once

LIMIT = """
import os, sys
from pathlib import Path
from modpo.base.processors import limit_threads
if sys.argv[1:]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
limit_threads(Path("nowhere"), Path("nowhere"))
import torch
print(torch.get_num_threads())
"""


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The usable ones of 64 processors in a made tree of control groups: this process's, and files by their path."""
    monkeypatch.setattr(processors, "_affinity", lambda: 64)
    monkeypatch.setattr(processors.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(processors, "_cores", lambda: 64)

    def make(own: str, files: dict[str, str]) -> tuple[Path, Path]:
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "own").write_text(own)
        return tmp_path / "cgroup", tmp_path / "own"

    return make


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "500000 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "300000 100000\n"}, 2),
        ("0::/../other\n", {"cpu.max": "200000 100000\n"}, 2),  # a namespace that began further down
        (
            "5:memory:/x\n4:cpu,cpuacct:/docker/1\n",
            {"cpu,cpuacct/docker/1/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n"},
            4,
        ),
        (  # the mount shows the container's own group as its root
            "4:cpu,cpuacct:/docker/1\n",
            {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("3:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000\n", "cpuset/cpu.cfs_period_us": "100000\n"}, 64),
        ("0::/\n", {"cpu.max": "200000 0\n"}, 64),
        ("0::/\n", {"cpu.max": "much\n"}, 64),
        ("", {"cpu.max": "200000 100000\n"}, 64),
        ("nonsense", {}, 64),
    ],
)
def test_the_quota_of_a_group_and_of_those_around_it(groups, own: str, files: dict[str, str], expected: int) -> None:
    assert usable_processors(*groups(own, files)) == expected


@pytest.mark.parametrize(
    ("quota", "environment", "threads"),
    [
        ("300000 100000", {}, "3"),
        ("max 100000", {}, None),
        ("6400000 100000", {}, None),
        ("300000 100000", {"OMP_NUM_THREADS": "7"}, "7"),
        ("300000 100000", {"MKL_NUM_THREADS": "7"}, None),
    ],
)
def test_threads_are_limited_unless_the_user_said_how_many(groups, monkeypatch, quota, environment, threads) -> None:
    for name in NAMED_BY:
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    limit_threads(*groups("0::/\n", {"cpu.max": quota}))
    assert os.environ.get("OMP_NUM_THREADS") == threads


def test_a_second_thread_of_a_core_gets_none(groups, monkeypatch) -> None:
    for name in NAMED_BY:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(processors, "_cores", lambda: 4)
    limit_threads(*groups("0::/\n", {"cpu.max": "600000 100000"}))
    assert os.environ["OMP_NUM_THREADS"] == "4"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to a processor")
@pytest.mark.parametrize("arguments", [["pinned"], []])
def test_a_pinned_process_has_as_many_threads_as_processors(arguments: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMED_BY}
    command = [sys.executable, "-c", LIMIT, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert 1 <= int(done.stdout) <= (1 if arguments else len(os.sched_getaffinity(0)))


def test_too_many_threads_are_said_once_and_left_alone(monkeypatch, capsys) -> None:
    say_once.cache_clear()
    monkeypatch.setattr(processors, "usable_processors", lambda: 2)
    for threads in (2, 8, 8):
        say_if_too_many_threads(threads)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: torch has 8 threads, but this process may use 2 processors")
    assert line.endswith("; fix: torch.set_num_threads(2), or OMP_NUM_THREADS=2")
