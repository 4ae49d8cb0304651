"""A language model of two layers and a sweep of it: everything real, only small."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from modpo.base import heartbeat, progress
from modpo.cli import main
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from tests.kit import build_model, copy_sweep, preference_rows, write_experiment, write_rows

# A shell that starts a job in the background has it ignore SIGINT, and what it starts too: tests send that signal.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Workers of pytest-xdist share the cores: with a thread a core each, OpenMP's threads mostly wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def plain_descent() -> dict[str, Any]:
    """Three steps of plain gradient descent in float32: what is compared is the gradient, not Adam's sign of it."""
    return {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "optim": "sgd",
        "learning_rate": 0.3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """A clock that stands still until it is told to move on by so many seconds."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

        def pass_by(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `tests.kit.build_model`, to be read only."""
    return build_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder in which `modpo sweep` has run, to be read only: experiment.yaml, rows.jsonl, run/ and cache/.

    Two points that are far enough from each other to give different answers. `tests.kit.copy_sweep` copies it.
    """
    folder = tmp_path_factory.mktemp("finished")
    write_rows(folder / "rows.jsonl", preference_rows())
    training = "{per_device_train_batch_size: 4, learning_rate: 2e-2, num_train_epochs: 2}"
    assert main(["sweep", str(write_experiment(folder, tiny_model, training=training))]) == 0
    return folder


@pytest.fixture
def copied_file(finished_sweep: Path, tmp_path: Path) -> Path:
    """The experiment file of a copy of the finished sweep, which a test may change."""
    return copy_sweep(finished_sweep, tmp_path)


@pytest.fixture
def copied(copied_file: Path) -> Experiment:
    return read_experiment(copied_file)
