"""`model.dtype: auto` from the first command to the last, on machines of both kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from modpo.base.progress import say_once
from modpo.cli import main
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from modpo.models.matmul_speed import MatmulSpeed
from tests.kit import SAMPLE, SAMPLED_DATA, preference_rows, write_experiment, write_rows

OBJECTIVES = """
  concise: {pairs: bradley_terry, reward: modpo.rewards.text:character_count, maximize: false, scale: 0.5}
  long: {reward: modpo.rewards.text:character_count, scale: 0.5}"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Moves the run to another machine, which multiplies faster in a number format."""

    def move(dtype: str) -> None:
        say_once.cache_clear()
        speed = MatmulSpeed(bfloat16=2e11 if dtype == "bfloat16" else 1e10, float32=1e11)
        monkeypatch.setattr("modpo.models.matmul_speed.platform.node", lambda: dtype)
        monkeypatch.setattr("modpo.models.matmul_speed._measured", lambda where: speed)

    return move


@pytest.fixture
def file(tiny_model: Path, tmp_path: Path) -> Path:
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in preference_rows()])
    path = write_experiment(tmp_path, tiny_model, objectives=OBJECTIVES, sample=SAMPLE, data=SAMPLED_DATA)
    path.write_text(path.read_text().replace(", dtype: float32", ""))
    return path


def kept(experiment: Experiment) -> dict[str, float]:
    """When each of the scored columns was written."""
    return {str(path): path.stat().st_mtime for path in experiment.cache_dir.rglob("manifest.json")}


def test_a_run_that_goes_on_elsewhere_stays_in_its_number_format(file: Path, machine, capsys) -> None:
    """Answers, columns and policies of the second machine are those of the first."""
    experiment = read_experiment(file)
    run = experiment.output_dir
    machine("bfloat16")
    assert main(["sample", str(file)]) == 0
    assert main(["score", str(file)]) == 0
    answers, columns = Path(experiment.data.path).read_bytes(), kept(experiment)
    machine("float32")
    capsys.readouterr()
    assert main(["sweep", str(file)]) == 0
    said = capsys.readouterr().err
    assert said.count(f"model.dtype: auto is bfloat16, as {run} was begun (here float32 is 10 times as fast") == 1
    assert Path(experiment.data.path).read_bytes() == answers
    assert {path: kept(experiment)[path] for path in columns} == columns
    assert read_experiment(run / "experiment.yaml").model.dtype == "bfloat16"
    assert main(["evaluate", str(file)]) == 0
    assert main(["bake", str(run), "--weights", "concise=0.5,long=0.5", "--merge", "--output", str(run / "baked")]) == 0
    with safe_open(run / "baked" / "model.safetensors", framework="pt") as weights:
        assert {str(weights.get_slice(name).get_dtype()) for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_another_name_than_the_folder_s_is_refused(file: Path, machine, capsys) -> None:
    machine("bfloat16")
    weights = ["--weights", "concise=0.5,long=0.5"]
    assert main(["train", str(file), *weights]) == 0
    assert main(["train", str(file), *weights, "--set", "model.dtype=bfloat16"]) == 0
    assert main(["train", str(file), *weights, "--set", "model.dtype=float32"]) == 4
    assert "the folder holds another experiment (model differ)" in capsys.readouterr().err
    machine("float32")
    (read_experiment(file).output_dir / "model_dtype.json").unlink()  # as of a folder that was begun in a named format
    assert main(["train", str(file), *weights]) == 0
    assert read_experiment(read_experiment(file).output_dir / "experiment.yaml").model.dtype == "bfloat16"


def test_an_inspection_chooses_nothing_for_the_folder(file: Path, machine) -> None:
    machine("float32")
    assert main(["sample", str(file)]) == 0
    chosen = read_experiment(file).output_dir / "model_dtype.json"
    assert json.loads(chosen.read_text()) == {"dtype": "float32"}
    chosen.unlink()
    assert main(["inspect", str(file)]) == 0
    assert not chosen.exists()
