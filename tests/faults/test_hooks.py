"""The hooks of modpo.base.fault_points: nothing without the variable, and just what it says with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import timeit
from collections import Counter
from pathlib import Path

import pytest

from modpo.base import fault_points as faults
from modpo.base.fault_points import reach

CHILD = """
from pathlib import Path
from modpo.base.fault_points import reach
for i in range(3):
    reach("a", Path("x"))
    reach("b", Path("x"))
    print(i, flush=True)
"""


@pytest.fixture(autouse=True)
def nothing_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_reached", Counter())
    monkeypatch.delenv(faults.VARIABLE, raising=False)


def in_a_process(fault: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, faults.VARIABLE: fault}
    return subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("action", "code"), [("kill", -signal.SIGKILL), ("term", -signal.SIGTERM), ("int", -signal.SIGINT)]
)
def test_a_signal_at_the_nth_time(action: str, code: int) -> None:
    done = in_a_process(f"b:2:{action}")
    assert (done.returncode, done.stdout) == (code, "0\n")


def test_nothing_without_the_variable_and_quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reach("a", tmp_path)
    monkeypatch.setenv(faults.VARIABLE, "")
    reach("a", tmp_path)
    assert timeit.timeit(lambda: reach("a", tmp_path), number=1000) / 1000 < 1e-4


def test_other_points_and_times_are_passed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(faults.VARIABLE, "a:2:enospc")
    reach("b", tmp_path)
    reach("b", tmp_path)
    reach("a", tmp_path)
    with pytest.raises(OSError, match="No space left") as raised:
        reach("a", tmp_path)
    assert raised.value.filename == str(tmp_path)
    reach("a", tmp_path)


@pytest.mark.parametrize(("action", "kind"), [("eio", OSError), ("raise", RuntimeError)])
def test_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, action: str, kind: type[Exception]) -> None:
    monkeypatch.setenv(faults.VARIABLE, f"a:1:{action}")
    with pytest.raises(kind):
        reach("a", tmp_path)


@pytest.mark.parametrize("folder", [False, True])
def test_a_short_write_leaves_half_of_the_largest_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: bool
) -> None:
    (tmp_path / "small").write_bytes(b"1234")
    (tmp_path / "large").write_bytes(b"12345678")
    monkeypatch.setenv(faults.VARIABLE, "a:1:short")
    with pytest.raises(OSError, match=r"Input/output error"):
        reach("a", tmp_path if folder else tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == b"1234"
    assert (tmp_path / "small").read_bytes() == b"1234"


def test_points_are_recorded_with_their_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(faults.VARIABLE, f"record:{tmp_path / 'record'}")
    reach("a", tmp_path / "x")
    reach("b", tmp_path)
    reach("a", tmp_path / "y")
    assert (tmp_path / "record").read_text() == f"a\t{tmp_path / 'x'}\nb\t{tmp_path}\na\t{tmp_path / 'y'}\n"
