"""A sweep of a tiny model from rows to front: what is finished stays, what is killed continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerState

from modpo.base.errors import LESS_MEMORY, NumericError
from modpo.cli import main
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from modpo.methods.sweep import finished_points, run_sweep
from modpo.policies.steered_front import load_front
from tests.kit import errors, preference_rows, read_rows, write_experiment, write_rows


@pytest.fixture
def experiment_file(tmp_path: Path, tiny_model: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    return write_experiment(tmp_path, tiny_model)


@pytest.fixture
def experiment(experiment_file: Path) -> Experiment:
    return read_experiment(experiment_file)


def adapters(experiment: Experiment) -> dict[str, bytes]:
    return {p.name: (p.folder / "adapter_model.safetensors").read_bytes() for p in finished_points(experiment)}


def test_from_rows_to_front(finished_sweep: Path) -> None:
    folder = finished_sweep / "run"
    for name in ("front.json", "front.csv", "front.png", "report.html", "responses.jsonl", "experiment.yaml"):
        assert (folder / name).stat().st_size > 0, name
    front = load_front(folder)
    assert [p.weights for p in front.points] == [{"kind": 0.75, "concise": 0.25}, {"kind": 0.25, "concise": 0.75}]
    assert front.reference.kl.mean == 0
    assert front.reference.scores["kind"].mean == 0.5  # the reference prefers no answer to another
    for point in front.points:
        assert (folder / str(point.adapter) / "adapter_config.json").is_file()
        assert point.cost.tokens > 0
    answers = read_rows(folder / "responses.jsonl")
    assert len(answers) == 3 * 3  # policies x held-out prompts
    words = [len(a["response"].split()) for a in answers if a["policy"] == front.points[0].name]
    assert front.points[0].scores["concise"].mean == pytest.approx(np.mean(words))


def test_killed_in_the_middle_it_continues(copied_file: Path, copied: Experiment, tmp_path: Path) -> None:
    experiment = read_experiment(copied_file, [f"output_dir={tmp_path / 'killed'}"])
    first = experiment.output_dir / "points" / "kind0.75-concise0.25"
    command = [sys.executable, "-m", "modpo", "sweep", str(copied_file), "--no-evaluate"]
    command += ["--set", f"output_dir={experiment.output_dir}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not first.is_dir() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.is_dir()
    kept = (first / "adapter_model.safetensors").stat().st_mtime_ns
    assert run_sweep(experiment) == []
    assert (first / "adapter_model.safetensors").stat().st_mtime_ns == kept
    assert [p.name for p in (experiment.output_dir / "points").iterdir() if p.name.startswith(".")] in ([], [".lock"])
    assert set(adapters(experiment)) == set(adapters(copied))


def test_a_point_that_fails_is_recorded_and_the_others_are_kept(
    experiment: Experiment, experiment_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from modpo.training.trainer import MODPOTrainer

    compute_loss = MODPOTrainer.compute_loss

    def broken(self: MODPOTrainer, *args: object, **kwargs: object) -> object:
        if self.args.weights["kind"] == 0.75 and self.state.global_step == 1:
            raise NumericError("step 1: the loss is not finite")
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(MODPOTrainer, "compute_loss", broken)
    assert main(["sweep", str(experiment_file)]) == 5
    assert "kind0.75-concise0.25" in capsys.readouterr().err
    front = load_front(experiment.output_dir)
    assert [p.name for p in front.points] == ["kind0.25-concise0.75"]
    assert [(f.name, f.reason) for f in front.failed] == [
        ("kind0.75-concise0.25", "NumericError: step 1: the loss is not finite")
    ]
    monkeypatch.undo()
    assert main(["sweep", str(experiment_file)]) == 0
    assert load_front(experiment.output_dir).failed == []


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")]
)
def test_out_of_memory_says_what_to_lower(
    experiment: Experiment,
    experiment_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: RuntimeError,
) -> None:
    """A sweep records it for the point, `train` leaves with it."""
    from modpo.training.trainer import MODPOTrainer

    def broken(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(MODPOTrainer, "compute_loss", broken)
    assert main(["sweep", str(experiment_file)]) == 5
    for record in (experiment.output_dir / "failed").iterdir():
        assert f"out of memory: {error}; fix: {LESS_MEMORY}" in json.loads(record.read_text())["reason"]
    capsys.readouterr()
    assert main(["train", str(experiment_file), "--weights", "kind=0.5,concise=0.5"]) == 3
    assert errors(capsys.readouterr().err) == [f"error: out of memory: {error}; fix: {LESS_MEMORY}"]


def test_weights_that_turn_nan_in_the_last_step_are_not_published(
    experiment: Experiment, experiment_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No loss sees them, and no checkpoint is saved after them."""
    from modpo.training.checkpoints import ResumableRun, trained_tensors

    on_step_end = ResumableRun.on_step_end

    def broken(self: ResumableRun, args: object, state: TrainerState, *rest: object, **kwargs: object) -> None:
        if state.global_step == state.max_steps:
            next(iter(trained_tensors(self._trainer.model).values())).fill_(float("nan"))
        on_step_end(self, args, state, *rest, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ResumableRun, "on_step_end", broken)
        command = ["train", str(experiment_file), "--weights", "kind=0.75,concise=0.25"]
        assert main(command) == 6
        assert "adapter_model.safetensors: " in (said := capsys.readouterr().err)
        assert "is not finite, so it is not published; fix: lower the learning rate" in said
        assert list(finished_points(experiment)) == []
    assert main(command) == 0  # from the checkpoint before
    assert [point.name for point in finished_points(experiment)] == ["kind0.75-concise0.25"]


def test_a_folder_that_holds_something_else_is_not_replaced(
    experiment: Experiment, experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    options = ["--weights", "kind=0.5,concise=0.5", "--output", str(tmp_path / "mine")]
    assert main(["train", str(experiment_file), *options]) == 2
    assert "holds something that is no policy" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_what_cannot_be_measured_is_refused_before_training(
    experiment: Experiment, experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "What now? "}\n{"prompt": "And then? "}\n')
    overrides = ["--set", f"data.eval_path={prompts}", "--set", "data.eval_format=prompts"]
    assert main(["sweep", str(experiment_file), *overrides]) == 2
    assert "no held-out pairs to measure kind on" in capsys.readouterr().err
    assert not experiment.output_dir.exists()
