"""Rewards of both kinds trained from pairs of a tiny data set, measured on held-out ones, and loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from modpo.base.errors import InputError, IntegrityError
from modpo.data.groups import PromptGroups, group_rows
from modpo.data.sources import open_rows
from modpo.experiment.sections import Experiment, RewardSection
from modpo.pipeline.reward import train_reward
from modpo.rewards.accuracy import held_out_accuracies
from modpo.rewards.batch import RewardBatch, RewardContext, reward_batch
from modpo.rewards.loading import load_reward
from tests.kit import manifest_of, times
from tests.pipeline.staged import without_sft


def loaded(experiment: Experiment, name: str, folder: Path) -> Any:
    kind = "reward_model" if name == "brief" else "implicit"
    section = RewardSection(**{kind: str(folder)})
    return load_reward(section, RewardContext.of(experiment), where="here", name=name)


def shares(reward: Any, groups: PromptGroups, label_set: str) -> list[list[float]]:
    """Of each prompt, 1 for a pair whose chosen response has the larger reward: one response at a time."""
    found = []
    for group in groups:
        scores = [reward(RewardBatch([group.prompt], [response], {}, {}, ["here"]))[0] for response in group.responses]
        pairs = group.pairs[label_set]
        found.append([float(scores[a] > scores[b]) for a, b in pairs])
    return found


@pytest.mark.parametrize(("name", "label_set"), [("brief", "brief"), ("friendly", "kind")])
def test_a_reward_is_trained_measured_and_loads(
    experiment: Experiment, name: str, label_set: str, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = without_sft(experiment)
    folder = train_reward(experiment, name)
    manifest = manifest_of(folder)
    reward = loaded(experiment, name, folder)
    train, held_out = group_rows(open_rows(experiment.data.path)).split_held_out(4, 0)
    by_hand = shares(reward, held_out, label_set)
    flat = [share for prompt in by_hand for share in prompt]
    off = [sum(prompt) - np.mean(flat) * len(prompt) for prompt in by_hand]
    se = np.sqrt(4 / 3 * np.sum(np.square(off))) / len(flat)
    expected = {"accuracy": np.mean(flat), "se": se, "pairs": len(flat), "prompts": 4}
    assert manifest["held_out"] == pytest.approx(expected)
    assert f"orders {np.mean(flat):.1%} of {len(flat)} held-out pairs" in capsys.readouterr().err
    learned = [share for prompt in shares(reward, train, label_set) for share in prompt]
    assert np.mean(learned) > 0.7  # it has learned what it was shown
    assert 0 < np.mean(flat) < 1
    assert held_out_accuracies(experiment) == {name: manifest["held_out"]}


def test_an_implicit_reward_remembers_its_beta(experiment: Experiment) -> None:
    experiment = without_sft(experiment)
    folder = train_reward(experiment, "friendly")
    manifest = manifest_of(folder)
    assert (manifest["beta"], manifest["kind"]) == (0.3, "implicit")
    assert (folder / "adapter_config.json").is_file()
    groups = group_rows(open_rows(experiment.data.path))[:2]
    batch = reward_batch(groups, range(2))
    scores = loaded(experiment, "friendly", folder)(batch)
    section = RewardSection(implicit=str(folder), beta=0.6)
    doubled = load_reward(section, RewardContext.of(experiment), where="here", name="friendly")(batch)
    assert doubled == pytest.approx([2 * score for score in scores])


def trained_with(experiment: Experiment, name: str, **changes: Any) -> Experiment:
    """The experiment, whose objective of that name learns its reward otherwise."""
    objective = experiment.objectives[name]
    reward = replace(objective.reward, train=replace(objective.reward.train, **changes))
    return replace(experiment, objectives={**experiment.objectives, name: replace(objective, reward=reward)})


def few_steps(experiment: Experiment, name: str) -> Experiment:
    return trained_with(experiment, name, arguments={"learning_rate": 1e-3, "max_steps": 2})


@pytest.mark.parametrize("name", ["brief", "friendly"])
def test_rewards_in_half_precision(experiment: Experiment, name: str) -> None:
    experiment = replace(without_sft(experiment), model=replace(experiment.model, dtype="bfloat16"))
    folder = train_reward(few_steps(experiment, name), name)
    (weights,) = folder.glob("*.safetensors")
    with safe_open(weights, framework="pt") as file:
        formats = {str(file.get_slice(key).get_dtype()) for key in file.keys()}  # noqa: SIM118
    assert formats == ({"BF16"} if name == "brief" else {"F32"})  # adapters are saved as they are trained
    if name == "brief":
        assert AutoTokenizer.from_pretrained(folder).model_max_length == experiment.data.max_length


def test_rewards_of_both_kinds_with_all_weights(experiment: Experiment) -> None:
    experiment = replace(without_sft(experiment), lora=None)
    for name in ("brief", "friendly"):
        folder = train_reward(few_steps(experiment, name), name)
        assert (folder / "model.safetensors").is_file()
        batch = reward_batch(group_rows(open_rows(experiment.data.path)), [0])
        assert len(set(loaded(experiment, name, folder)(batch))) == 3


@pytest.mark.parametrize("name", ["brief", "friendly"])
def test_no_reward_learns_from_prompts_that_policies_are_measured_on(experiment: Experiment, name: str) -> None:
    from modpo.pipeline.reward import _task

    _, measured = group_rows(open_rows(experiment.data.path)).split_held_out(4, 0)
    for fewer in (1, 4, 7):  # its own held-out prompts, and the experiment's
        task = _task(trained_with(experiment, name, eval_prompts=fewer), name)
        assert not set(task.learned.keys) & set(measured.keys)
        assert not set(task.learned.keys) & set(task.held_out.keys)
        assert len(task.held_out) == fewer
        assert len(task.learned) == 14 - max(4, fewer)


def test_a_label_set_that_is_not_there(experiment: Experiment) -> None:
    with pytest.raises(InputError, match=r"no pair of the label set 'brevity'; it has kind, brief; fix: "):
        train_reward(trained_with(experiment, "brief", pairs="brevity"), "brief")


def test_an_objective_without_a_reward_to_train(experiment: Experiment) -> None:
    with pytest.raises(InputError, match="has no reward to train"):
        train_reward(experiment, "kind")


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("brief", {"beta": 1.0}, "is no field of RewardConfig"),
        ("friendly", {"betta": 1.0}, "is no field of MODPOConfig"),
        ("friendly", {"weights": {"a": 1}}, "has a place of its own; fix: set `objectives` instead"),
    ],
)
def test_bad_reward_arguments_are_one_line(
    experiment: Experiment, name: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        train_reward(trained_with(experiment, name, arguments=arguments), name)
    assert f"objectives.{name}.reward.train.arguments." in str(caught.value)
    assert not experiment.output_dir.exists()


def test_a_reward_is_kept_and_other_settings_are_refused(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = without_sft(experiment)
    folder = train_reward(experiment, "brief")
    before = times(folder)
    capsys.readouterr()
    train_reward(experiment, "brief")
    assert "reward brief: finished before, kept" in capsys.readouterr().err
    with pytest.raises(IntegrityError, match="delete it"):
        train_reward(replace(experiment, data=replace(experiment.data, split_seed=1)), "brief")
    assert times(folder) == before
