"""What the stages fill in."""

from __future__ import annotations

from dataclasses import replace

from modpo.experiment.sections import Experiment
from modpo.pipeline.stages import prepare
from tests.pipeline.staged import without_sft


def test_an_experiment_without_stages_is_given_back(experiment: Experiment) -> None:
    plain = replace(without_sft(experiment), objectives={"kind": experiment.objectives["kind"]})
    assert prepare(plain) is plain
