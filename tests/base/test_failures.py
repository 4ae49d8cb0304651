"""What fails by itself is recorded, and what everything would fail at is raised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modpo.base.errors import AGAIN, EnvironmentFault, InputError, IntegrityError, NumericError, Problem
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


@pytest.mark.parametrize(
    ("reasons", "again"),
    [
        (["RuntimeError: only Tensors of floating point dtype can require gradients"], False),
        (["NumericError: step 3: the loss is not finite", "ValueError: a mistake"], False),
        (["MemoryError: out of memory: MemoryError; fix: lower it"], True),
        (["ValueError: a mistake", "OutOfMemoryError: out of memory: CUDA out of memory. Tried 2 GiB"], True),
        ([f"PartialFailure: run: 1 of 2 points failed: a; fix: free memory, and {AGAIN}"], True),
        (["PartialFailure: run: 1 of 2 points failed: a; fix: mend the cause"], False),
    ],
)
def test_the_same_again_is_advised_where_it_can_help_only(tmp_path: Path, reasons: list[str], again: bool) -> None:
    records = [tmp_path / f"point{i}.json" for i in range(len(reasons))]
    for record, reason in zip(records, reasons, strict=True):
        record.write_text(json.dumps({"name": record.stem, "reason": reason}))
    assert (AGAIN in fix_of(records)) == again
    assert AGAIN not in fix_of([tmp_path / "nothing.json"])
