"""The experiment with stages, on the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from tests.pipeline.staged import write_staged


@pytest.fixture
def experiment_file(tmp_path: Path, tiny_model: Path) -> Path:
    return write_staged(tmp_path, tiny_model)


@pytest.fixture
def experiment(experiment_file: Path) -> Experiment:
    return read_experiment(experiment_file)
