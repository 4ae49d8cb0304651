"""What fails by itself is recorded, and what everything would fail at is raised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modpo.base.errors import EnvironmentFault, InputError, IntegrityError, NumericError, Problem
from modpo.base.failures import done_or_recorded, fix_of

SECRET = "hf_" + "aB3" * 8


def raising(error: BaseException):
    def do() -> None:
        raise error

    return do


@pytest.mark.parametrize(
    "error", [NumericError("NaN"), RuntimeError("NaN\nmore"), ValueError("NaN"), MemoryError("NaN")]
)
def test_a_failure_is_recorded_and_forgotten_once_it_is_done(tmp_path: Path, capsys, error: Exception) -> None:
    record = tmp_path / "failed" / "a.json"
    assert not done_or_recorded(raising(error), "point a", record, {"name": "a"})
    written = json.loads(record.read_text())
    assert written["name"] == "a"
    assert written["reason"].startswith(type(error).__name__)
    assert "NaN" in written["reason"]
    assert capsys.readouterr().err.startswith("point a failed: ")
    assert done_or_recorded(lambda: None, "point a", record, {"name": "a"})
    assert not record.exists()


AGAIN = "run the same command again, what is finished is kept"
HELPED = [
    "OutOfMemoryError: out of memory: CUDA out of memory. Tried to allocate 2 GiB; fix: lower",
    "RuntimeError: out of memory: DefaultCPUAllocator: can't allocate memory; fix: lower",
    "RuntimeError: CUDA error: an illegal memory access was encountered",
    "RuntimeError: NCCL communicator was aborted on rank 0",
    f"PartialFailure: out: 1 of 2 points failed: a; fix: {AGAIN}",
]
COMES_BACK = [
    "NumericError: step 3: the loss is not finite; fix: lower learning_rate",
    "RuntimeError: only Tensors of floating point dtype can require gradients",
    "ValueError: Applying a PEFT adapter to `lm_head` is not supported",
]


def test_the_same_again_is_advised_where_it_can_help() -> None:
    for reason in HELPED:
        assert fix_of([*COMES_BACK, reason], Path("out/failed")) == AGAIN
    for reason in COMES_BACK:
        assert fix_of([reason], Path("out/failed")).startswith("act on the reasons first, for they would come back: ")
    inner = fix_of(COMES_BACK, Path("out/sweep/failed"))
    assert "out/failed;" in fix_of([f"PartialFailure: out/sweep: 2 of 2 failed; fix: {inner}"], Path("out/failed"))


def test_no_secret_is_recorded(tmp_path: Path, capsys) -> None:
    record = tmp_path / "a.json"
    done_or_recorded(raising(RuntimeError(f"the Hub refuses {SECRET}")), "a", record, {})
    assert json.loads(record.read_text()) == {"reason": "RuntimeError: the Hub refuses ***"}
    assert SECRET not in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        InputError(Problem("a", "", "b", "c")),
        IntegrityError("changed"),
        EnvironmentFault("busy"),
        KeyboardInterrupt(),
        TypeError("a mistake of ours"),
    ],
)
def test_what_the_rest_would_meet_too_is_raised(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        done_or_recorded(raising(error), "a", tmp_path / "a.json", {})
    assert not (tmp_path / "a.json").exists()
