"""What the stages fill in."""

from __future__ import annotations

from dataclasses import fields, replace

from modpo.experiment.sections import Experiment
from modpo.pipeline.stages import prepare
from tests.pipeline.staged import without_sft


def test_an_experiment_without_stages_resolves_to_itself(experiment: Experiment) -> None:
    plain = replace(without_sft(experiment), objectives={"kind": experiment.objectives["kind"]})
    resolved = prepare(plain)
    assert resolved.asked is plain
    assert all(getattr(resolved, f.name) == getattr(plain, f.name) for f in fields(plain))
