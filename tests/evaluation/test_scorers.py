"""Scorers that measure and that nothing is trained on: what they change, and what they must leave alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modpo.base.errors import InputError
from modpo.cli import main
from modpo.evaluation.evaluate import evaluate_sweep
from modpo.evaluation.scorers import is_separate, load_evaluation_rewards, scorer_warnings
from modpo.experiment.file import read_experiment, to_yaml
from modpo.experiment.sections import Experiment, RewardSection, RewardTraining
from modpo.front.schema import Front
from modpo.methods.sweep import finished_points
from modpo.policies.steered_front import load_front
from tests.kit import WORDS, write_experiment, write_rows

CHARACTERS = "{concise: modpo.rewards.text:character_count}"


@pytest.fixture
def experiment_file(tmp_path: Path, tiny_model: Path) -> Path:
    rows = [
        {"prompt": f"{i}: the {word}? ", "chosen": f"good {word}" + "!" * i, "rejected": f"bad {word} and more"}
        for i, word in enumerate(WORDS)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    return write_experiment(
        tmp_path,
        tiny_model,
        objectives="""
  kind: {pairs: data, reward: {function: modpo.rewards.text:matches, kwargs: {pattern: good}}}
  concise: {reward: modpo.rewards.text:word_count, maximize: false, calibration: standardise, unit: characters}""",
        sweep="{weights: [{kind: 0.5, concise: 0.5}]}",
    )


@pytest.fixture
def read(experiment_file: Path) -> Callable[..., Experiment]:
    return lambda *overrides: read_experiment(experiment_file, overrides)


def answers(front: Front, policy: str) -> list[str]:
    lines = [json.loads(line) for line in (front.folder / "responses.jsonl").read_text().splitlines()]
    return [line["response"] for line in lines if line["policy"] == policy]


# --- measuring ----------------------------------------------------------------------------------------------


def test_a_scorer_of_its_own_measures_and_changes_nothing_that_is_trained(
    experiment_file: Path, read: Callable[..., Experiment]
) -> None:
    """Concise answers are trained on words, and then measured by characters: another score of the same answers, by the
    same policy, whose audit stays what it was.
    """
    assert main(["sweep", str(experiment_file)]) == 0
    words = load_front(read().output_dir)
    (trained,) = finished_points(read())
    experiment = read(f"evaluation.rewards={CHARACTERS}")
    characters = evaluate_sweep(experiment)
    (point,), (same,) = words.points, characters.points
    (kept,) = finished_points(experiment)
    assert kept == trained
    texts = answers(characters, same.name)
    assert texts == answers(words, point.name)
    assert point.scores["concise"].mean == pytest.approx(np.mean([len(text.split()) for text in texts]))
    assert same.scores["concise"].mean == pytest.approx(np.mean([len(text) for text in texts]))
    assert same.scores["kind"] == point.scores["kind"]
    assert same.audit == point.audit
    assert same.audit is not None
    before, after = words.objectives[1], characters.objectives[1]
    assert (before.measured_by, before.separate) == ("modpo.rewards.text:word_count", False)
    assert (after.measured_by, after.separate) == ("modpo.rewards.text:character_count", True)
    assert (after.calibration, after.maximize) == (before.calibration, False)
    assert "rewards" not in characters.evaluation
    assert main(["report", str(characters.folder)]) == 0
    assert "character_count, which it was not trained on" in (characters.folder / "report.html").read_text()


def test_an_objective_known_by_pairs_alone_is_measured_on_new_answers(
    experiment_file: Path, read: Callable[..., Experiment]
) -> None:
    """So that held-out prompts without answers are enough; by agreement they were not."""
    prompts = experiment_file.with_name("prompts.jsonl")
    prompts.write_text('{"prompt": "What now? "}\n{"prompt": "And then? "}\n')
    overrides = ["objectives.kind={pairs: data}", f"data.eval_path={prompts}", "data.eval_format=prompts"]
    command = ["sweep", str(experiment_file), *(f"--set={override}" for override in overrides)]
    assert main(command) == 2
    good = "{function: modpo.rewards.text:matches, kwargs: {pattern: e}}"
    assert main([*command, f"--set=evaluation.rewards={{kind: {good}}}"]) == 0
    front = load_front(read().output_dir)
    share = np.mean([len(set(text) & {"e"}) for text in answers(front, front.points[0].name)])
    assert front.points[0].scores["kind"].mean == pytest.approx(share)
    assert front.objectives[0].maximize


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ("{terse: 'a:b'}", "evaluation.rewards.terse: is of no objective; fix: use one of: kind, concise"),
        ("{concise: nothing}", "evaluation.rewards.concise.function: 'nothing' names no function"),
        ("{concise: {column: words}}", "evaluation.rewards.concise: is a column of the data, which cannot score new"),
        ("{concise: {sum: [{column: words}]}}", "evaluation.rewards.concise: is a column of the data"),
        ("{concise: {train: reward_model}}", "evaluation.rewards.concise: is still to be trained; fix: train it"),
        ("{concise: {}}", "evaluation.rewards.concise: has no source; fix: give exactly one of"),
        ("{concise: 3}", "evaluation.rewards.concise: expected a section of keys, got 3"),
        ("[concise]", "evaluation.rewards: expected a mapping"),
    ],
)
def test_what_the_file_may_not_say(read: Callable[..., Experiment], rewards: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        read(f"evaluation.rewards={rewards}")
    (problem,) = refused.value.problems
    assert said in str(problem)


def test_a_scorer_that_cannot_be_had_is_named_by_its_own_place(read: Callable[..., Experiment], tmp_path: Path) -> None:
    for rewards, field in {
        "{concise: 'no_such_module:f'}": "evaluation.rewards.concise",
        f"{{concise: {{reward_model: {tmp_path}/none}}}}": "evaluation.rewards.concise.reward_model",
        f"{{concise: {{implicit: {tmp_path}/none}}}}": "evaluation.rewards.concise.implicit",
    }.items():
        with pytest.raises(InputError) as refused:
            load_evaluation_rewards(read(f"evaluation.rewards={rewards}"))
        assert refused.value.problems[0].field == field


def test_a_scorer_that_fails_is_found_before_training(
    experiment_file: Path, read: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    experiment_file.with_name("stumbling.py").write_text("def score(completions, **_):\n    raise ValueError('no')\n")
    monkeypatch.syspath_prepend(experiment_file.parent)
    assert main(["sweep", str(experiment_file), "--set", "evaluation.rewards={concise: 'stumbling:score'}"]) == 2
    assert "stumbling:score raised ValueError: no" in capsys.readouterr().err
    assert not read().output_dir.exists()


# --- what is said -------------------------------------------------------------------------------------------


def test_only_a_learned_scorer_that_is_trained_on_is_warned_of(read: Callable[..., Experiment]) -> None:
    """A count of words is what is meant; a reward model is a guess at it."""
    experiment = read()
    assert scorer_warnings(experiment) == []
    learned = RewardSection(train=RewardTraining("reward_model"))
    concise = replace(experiment.objectives["concise"], reward=learned)
    experiment = replace(experiment, objectives={**experiment.objectives, "concise": concise})
    (warning,) = scorer_warnings(experiment)
    assert warning.startswith("concise is measured by the model that it is trained on")
    resolved = replace(concise, reward=RewardSection(reward_model="run/rewards/concise"))
    trained = replace(experiment, objectives={**experiment.objectives, "concise": resolved}, asked=experiment)
    assert scorer_warnings(trained) == [warning]
    apart = replace(experiment.evaluation, rewards={"concise": RewardSection(function="modpo.rewards.text:word_count")})
    assert scorer_warnings(replace(trained, evaluation=apart)) == []


def test_the_objective_s_own_reward_is_not_separate(read: Callable[..., Experiment]) -> None:
    assert not is_separate(read("evaluation.rewards={concise: modpo.rewards.text:word_count}"), "concise")
    assert is_separate(read(f"evaluation.rewards={CHARACTERS}"), "concise")
    assert not is_separate(read(f"evaluation.rewards={CHARACTERS}"), "kind")


def test_inspect_shows_both(experiment_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(experiment_file), "--set", f"evaluation.rewards={CHARACTERS}"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "character_count" in shown


def test_it_is_written_and_read_back(read: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = read("evaluation.rewards={concise: {reward_model: some/model, label: terse}}")
    assert experiment.evaluation.rewards == {"concise": RewardSection(reward_model="some/model", label="terse")}
    written = tmp_path / "written.yaml"
    written.write_text(to_yaml(experiment))
    assert read_experiment(written) == experiment
