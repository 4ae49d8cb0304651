"""The whole pipeline from one file on a tiny model, its stages one by one, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modpo.cli import main
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment, RewardSection
from modpo.pipeline.stages import prepare
from modpo.rewards.accuracy import held_out_accuracies
from tests.kit import times
from tests.pipeline.staged import write_staged


@pytest.fixture
def experiment_file(tmp_path: Path, tiny_model: Path) -> Path:
    return write_staged(tmp_path, tiny_model)


@pytest.fixture
def experiment(experiment_file: Path) -> Experiment:
    return read_experiment(experiment_file)


def test_from_one_file_to_the_front_and_nothing_the_second_time(
    experiment_file: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    from modpo.policies.steered_front import load_front

    assert main(["sweep", str(experiment_file)]) == 0
    said = capsys.readouterr().err
    names = ["sft", "reward brief", "reward friendly", "sweep", "evaluate", "report"]
    assert [line.partition(";")[0] for line in said.splitlines() if line.startswith("stage ")] == [
        f"stage {i} of 6: {name}" for i, name in enumerate(names, start=1)
    ]
    front = load_front(experiment.output_dir)
    assert set(front.points[0].scores) == {"kind", "brief", "friendly"}
    accuracies = held_out_accuracies(experiment)
    assert set(accuracies) == {"brief", "friendly"}
    before = times(experiment.output_dir / "points")
    assert main(["sweep", str(experiment_file)]) == 0
    said = capsys.readouterr().err
    for kept in ("sft", "reward brief", "reward friendly", "kind0.5-brief0.25-friendly0.25"):
        assert f"{kept}: finished before, kept" in said
    assert "took" not in said  # no progress bar of anything computed
    assert times(experiment.output_dir / "points") == before


def test_commands_name_what_is_missing(
    experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain.yaml"
    plain.write_text("model: {model_name_or_path: m}\ndata: {path: r.jsonl}\nobjectives: {a: {pairs: data}}\n")
    for command, said in {
        "sft": "sft: there is no such section; fix: add `sft: {path: demonstrations.jsonl}`",
        "sample": "sample: there is no such section; fix: add `sample: {prompts: prompts.jsonl}`",
        "reward": "objectives: none has a reward to train; fix: ",
    }.items():
        assert main([command, str(plain)]) == 2
        assert said in capsys.readouterr().err


def test_single_stages_and_what_they_fill_in(
    experiment_file: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sft", str(experiment_file)]) == 0
    assert main(["reward", str(experiment_file)]) == 0
    said = capsys.readouterr().err
    assert "stage 3 of 3: reward friendly" in said
    assert "sft: finished before, kept" in said
    resolved = prepare(experiment)
    rewards = experiment.output_dir / "rewards"
    assert resolved.asked is experiment
    assert resolved.model.model_name_or_path == str(experiment.output_dir / "sft")
    assert resolved.objectives["brief"].reward == RewardSection(reward_model=str(rewards / "brief"))
    assert resolved.objectives["friendly"].reward == RewardSection(implicit=str(rewards / "friendly"), beta=0.3)
    assert prepare(resolved) is resolved
    assert held_out_accuracies(resolved) == held_out_accuracies(experiment)
    config = json.loads((rewards / "friendly" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(experiment.output_dir / "sft")
