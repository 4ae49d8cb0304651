"""scripts/gpu_check.sh and benchmarks/gpu_check: how parts become a table, and, slow, that all of it runs on a CPU."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script is bash")


@pytest.fixture
def check(monkeypatch):
    """The modules of benchmarks.gpu_check."""
    monkeypatch.syspath_prepend(str(ROOT))
    names = ("__main__", "rows", "run_part", "setting", "part")
    return SimpleNamespace(**{name: importlib.import_module(f"benchmarks.gpu_check.{name}") for name in names})


def run(*arguments, **environment):
    everything = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=everything, check=False)


def test_rows_come_through_what_a_process_prints(check, capsys):
    row = check.rows.judged("attention", "float32", "off by 1e-6", True, worst=1e-6)
    print("another line")
    check.rows.tell_row(row)
    assert list(check.rows.told_rows(capsys.readouterr().out.splitlines())) == [row]


def test_a_failed_row_fails_and_missing_rows_alone_do_not_pass(check):
    held, failed = (check.rows.judged("part", "check", "result", ok) for ok in (True, False))
    missing = check.rows.Row("machine", "card", "none", check.rows.MISSING)
    sound = check.__main__.sound
    assert sound([held, missing])
    assert not sound([held, failed])
    assert not sound([missing])
    assert not sound([])


def test_ours_is_divided_by_theirs(check):
    rows = [
        check.rows.Row(f"lora {side}", "step", "", check.rows.MEASURED, numbers)
        for side, numbers in {
            "modpo": {"pairs_per_second": 60.0, "peak_gb": 2.0, "loss": [0.6931]},
            "trl": {"pairs_per_second": 4.0, "peak_gb": 8.0, "loss": [0.6932]},
        }.items()
    ]
    assert check.__main__.ratios("lora modpo", rows[:1]) == []
    speed, memory, losses = check.__main__.ratios("lora trl", rows)
    assert (speed.numbers, memory.numbers) == ({"speed_ratio": 15.0}, {"memory_ratio": 0.25})
    assert [row.status for row in (speed, memory, losses)] == ["held"] * 3
    rows[1].numbers.update(pairs_per_second=120.0, loss=[0.9])
    assert [row.status for row in check.__main__.ratios("lora trl", rows)] == ["failed", "held", "failed"]


def test_a_part_whose_time_is_over_is_cut_off(check, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (row,) = check.run_part.run_part("machine", check.setting.Setting(str(tmp_path), small=True), seconds=1)
    assert row.status == "failed"
    assert "cut off after 1 s" in row.result


def test_a_part_without_time_is_missing(check, tmp_path):
    (row,) = check.run_part.run_part("machine", check.setting.Setting(str(tmp_path), small=True), seconds=0.5)
    assert (row.status, row.result) == ("missing", "no time was left for it")


def test_a_part_that_raises_is_a_failed_row(check, tmp_path, capsys):
    nowhere = check.setting.Setting(str(tmp_path), small=True, model=str(tmp_path / "nowhere"))
    with pytest.raises(Exception, match="nowhere"):
        check.part.main("packing", nowhere.as_text())
    (row,) = check.rows.told_rows(capsys.readouterr().out.splitlines())
    assert (row.part, row.status) == ("packing", "failed")
    assert "nowhere" in row.result


def test_a_python_without_torch_is_named_in_one_line(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    done = run(PYTHON=str(python))
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"gpu_check: {python} has no torch; fix: name a Python that has it (PYTHON=...), or install torch for this "
        "machine's GPU"
    ]


def test_an_unknown_part_is_refused(check, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--parts", "atention"])
    with pytest.raises(SystemExit):
        check.__main__.parsed()
    assert "--parts: no part is called atention; fix: choose of machine, attention, packing" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_of_it_runs_on_a_cpu(tmp_path):
    """Every part with small sizes; a busy machine may need longer than a card would."""
    output = tmp_path / "gpu.json"
    done = run(
        "--small",
        "--output",
        str(output),
        "--work",
        str(tmp_path / "work"),
        PYTHON=sys.executable,
        SECONDS_IN_ALL="1500",
    )
    rows = json.loads(output.read_text())["rows"]
    assert [row for row in rows if row["status"] == "failed"] == [], done.stdout
    assert done.returncode == 0
    parts = {row["part"] for row in rows}
    trained = {"lora modpo", "lora trl", "lora", "full modpo", "full trl", "full"}
    assert parts == {"machine", "attention", "packing", "sampling", "demo"} | trained
