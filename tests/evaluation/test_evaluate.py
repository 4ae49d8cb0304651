"""A front is measured once, and only of policies of its own experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from modpo.base.errors import IntegrityError
from modpo.evaluation.evaluate import evaluate_sweep
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from modpo.front.schema import read_front


def test_measured_policies_are_not_measured_again(copied: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    front = read_front(copied.output_dir)
    assert evaluate_sweep(copied) == front
    assert "answers of" not in capsys.readouterr().err


def test_points_of_another_experiment_are_not_measured(copied_file: Path) -> None:
    with pytest.raises(IntegrityError, match="objectives differ"):
        evaluate_sweep(read_experiment(copied_file, ["objectives.concise.scale=2"]))
