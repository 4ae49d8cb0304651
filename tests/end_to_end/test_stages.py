"""The stages before a sweep, on a tiny model: a policy from demonstrations, rewards from pairs, the pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from modpo.base.errors import InputError, IntegrityError, NumericError
from modpo.base.files import read_manifest
from modpo.cli import main
from modpo.data.groups import PromptGroups, group_rows
from modpo.data.rows import rows_from_list
from modpo.data.sources import open_rows
from modpo.data.tokens import tokenize_prompt
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment, RewardSection, SftSection
from modpo.forward.logprobs import padded_logps
from modpo.models.reference import ReferenceModel
from modpo.pipeline.demonstrations import load_demonstrations, preferred_answers, read_demonstrations
from modpo.pipeline.reward import train_reward
from modpo.pipeline.reward_task import RewardTask
from modpo.pipeline.sft import train_sft
from modpo.pipeline.stages import prepare
from modpo.rewards.accuracy import held_out_accuracies, held_out_accuracy
from modpo.rewards.batch import RewardBatch, reward_batch
from modpo.rewards.context import RewardContext
from modpo.rewards.loading import load_reward
from tests.kit import WORDS, times, write_experiment, write_rows


def rows(prompts: int = 14) -> list[dict[str, Any]]:
    """Two label sets: `kind` prefers the friendlier answer, `brief` the shorter one. Every fourth prompt disagrees."""
    found = []
    for i in range(prompts):
        word = WORDS[i % len(WORDS)]
        responses = [f"good {word}", f"bad {word} and more", f"good {word} and more!"]
        pairs = {"kind": [[0, 1], [2, 1]], "brief": [[0, 2], [0, 1]][: 1 + i % 2]}
        if i % 4 == 3:
            pairs = {"kind": [[0, 1], [1, 2]], "brief": [[2, 0]]}
        found.append({"prompt": f"{i}: the {word}? ", "responses": responses, "pairs": pairs})
    return found


def write_demonstrations(path: Path, count: int = 8) -> None:
    words = [WORDS[i % len(WORDS)] for i in range(count)]
    write_rows(path, [{"prompt": f"d{i} the {w}? ", "completion": f"good {w}"} for i, w in enumerate(words)])


@pytest.fixture
def experiment_file(tmp_path: Path, tiny_model: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl", rows())
    write_demonstrations(tmp_path / "demonstrations.jsonl")
    return write_experiment(
        tmp_path,
        tiny_model,
        sft="""
  path: FOLDER/demonstrations.jsonl
  eval_prompts: 2
  arguments: {learning_rate: 1e-2, num_train_epochs: 2, per_device_train_batch_size: 4}""",
        data="{path: FOLDER/rows.jsonl, eval_prompts: 4, max_length: 64}",
        objectives="""
  kind: {pairs: kind}
  brief:
    reward:
      train: {kind: reward_model, pairs: brief, arguments: {learning_rate: 1e-2, num_train_epochs: 1}}
  friendly:
    reward:
      train: {kind: implicit, pairs: kind, arguments: {beta: 0.3, learning_rate: 2e-2, num_train_epochs: 3}}""",
        sweep="{weights: [{kind: 0.5, brief: 0.25, friendly: 0.25}]}",
        evaluation="{max_new_tokens: 6, bootstrap: 50}",
    )


@pytest.fixture
def experiment(experiment_file: Path) -> Experiment:
    return read_experiment(experiment_file)


def without_sft(experiment: Experiment) -> Experiment:
    return replace(experiment, sft=None)


# --- demonstrations -----------------------------------------------------------------------------------------


def demonstrations(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    return list(read_demonstrations(rows_from_list(rows, "rows.jsonl")))


USER, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}


def test_demonstrations_are_what_trl_knows() -> None:
    plain = {"prompt": "Hi? ", "completion": "Hello.", "source": "me"}
    assert demonstrations(plain) == [{"prompt": "Hi? ", "completion": "Hello."}]
    chat = {"prompt": [USER], "completion": [ANSWER]}
    assert demonstrations(chat) == [chat]
    assert demonstrations({"messages": [USER, ANSWER, USER, ANSWER]}) == [{"messages": [USER, ANSWER, USER, ANSWER]}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi? "}, "rows.jsonl:row 1:completion: missing field; fix: give `prompt` and `completion`"),
        ({"text": "Hi?"}, "rows.jsonl:row 1:prompt: missing field"),
        ({"prompt": "Hi? ", "completion": " "}, "rows.jsonl:row 1:completion: the response is empty"),
        ({"prompt": "Hi? ", "completion": 3}, "rows.jsonl:row 1:completion: 3 is neither text nor"),
        ({"prompt": "", "completion": "Hello"}, "rows.jsonl:row 1:prompt: is empty"),
        ({"prompt": [USER], "completion": "Hello"}, "rows.jsonl:row 1:completion: is plain text in one field"),
        ({"prompt": "a", "completion": "b", "tools": [1]}, "rows.jsonl:row 1:tools: tools are not supported"),
        ({"messages": [USER]}, "rows.jsonl:row 1:messages: holds no prompt and answer"),
        ({"messages": [USER, ANSWER, USER]}, "rows.jsonl:row 1:messages[2]: holds a message of role 'user'"),
        ({"messages": [{"role": "bot", "content": "?"}, ANSWER]}, "rows.jsonl:row 1:messages[0].role: unknown role"),
        ({"messages": [USER, {"role": "assistant"}]}, "rows.jsonl:row 1:messages[1]: {'role': 'assistant'} is no"),
        ({"messages": [USER, ANSWER]}, "rows.jsonl:row 1:messages: is laid out otherwise than the rows before"),
        ({"prompt": [USER], "completion": [ANSWER]}, "rows.jsonl:row 1:prompt: is laid out otherwise"),
    ],
)
def test_bad_demonstrations_name_file_and_row(row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        demonstrations({"prompt": "Hi? ", "completion": "Hello."}, row)
    assert str(caught.value).startswith(said)


def test_bad_rows_are_said_together_up_to_twenty() -> None:
    with pytest.raises(InputError) as caught:
        demonstrations(*[{"prompt": "Hi? "}] * 30)
    assert len(caught.value.problems) == 20


def test_preferred_answers_are_never_rejected() -> None:
    row = {"prompt": "p ", "responses": ["a", "b", "c", "d"], "pairs": {"x": [[0, 1], [2, 0]], "y": [[2, 3], [3, 1]]}}
    groups = group_rows(rows_from_list([row]))
    assert preferred_answers(groups) == [{"prompt": "p ", "completion": "c"}]


def test_what_policies_are_measured_on_is_not_learned(experiment: Experiment) -> None:
    rows = group_rows(open_rows(experiment.data.path))
    section = SftSection(experiment.data.path, format="preference", eval_prompts=3)
    found = load_demonstrations(section, never=rows[:5], seed=0)
    prompts = [{row["prompt"] for row in side} for side in (found.learned, found.held_out)]
    assert [len(side) for side in prompts] == [4, 3]  # of nine prompts two have no answer that nobody rejects
    assert not prompts[0] & prompts[1]
    assert not (prompts[0] | prompts[1]) & {group.prompt for group in rows[:5]}


def test_nothing_left_to_learn_is_said(experiment: Experiment) -> None:
    rows = group_rows(open_rows(experiment.data.path))
    with pytest.raises(InputError, match="0 held-out of 0 demonstrated prompts leave none to learn from"):
        load_demonstrations(SftSection(experiment.data.path, format="preference"), never=rows, seed=0)


# --- sft ----------------------------------------------------------------------------------------------------


def demonstrated_logps(folder: Path, experiment: Experiment) -> list[float]:
    """log pi of each demonstration's answer, in nats: the slow way, one text at a time."""
    reference = ReferenceModel(replace(experiment.model, model_name_or_path=str(folder)), experiment.cache_dir)
    logps = []
    for row in read_demonstrations(open_rows(experiment.sft.path if experiment.sft else "")):
        prompt = tokenize_prompt(row["prompt"], reference.tokenizer)
        answer = [*reference.tokenizer(row["completion"])["input_ids"], reference.tokenizer.eos_token_id]
        with torch.no_grad():
            logps.append(float(padded_logps(reference.model, [prompt], [[answer]])[0]))
    return logps


@pytest.mark.parametrize("adapters", [True, False])
def test_sft_learns_the_demonstrations(experiment: Experiment, tiny_model: Path, adapters: bool) -> None:
    if not adapters:
        assert experiment.sft is not None
        sft = replace(experiment.sft, arguments={**experiment.sft.arguments, "learning_rate": 1e-3})
        experiment = replace(experiment, lora=None, sft=sft)
    folder = train_sft(experiment)
    assert folder == experiment.output_dir / "sft"
    assert not (folder / "adapter_config.json").exists()
    before, after = demonstrated_logps(tiny_model, experiment), demonstrated_logps(folder, experiment)
    assert np.mean(after) > np.mean(before) + 5
    manifest = read_manifest(folder) or {}
    assert manifest["demonstrations"] == 6
    assert manifest["cost"]["tokens"] > 0
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32


def test_held_out_loss_is_that_of_the_saved_model(experiment: Experiment) -> None:
    """Nats per token of the two held-out demonstrations, which fit one batch, by hand."""
    folder = train_sft(experiment)
    assert experiment.sft is not None
    held_out = load_demonstrations(experiment.sft, never=group_rows(open_rows(experiment.data.path)), seed=0).held_out
    assert len(held_out) == 2
    every = read_demonstrations(open_rows(experiment.sft.path))
    logps = demonstrated_logps(folder, experiment)
    chosen = [every.index(row) for row in held_out]
    tokens = sum(len(str(every[i]["completion"])) + 1 for i in chosen)  # a byte is a token, and the end is one
    expected = -sum(logps[i] for i in chosen) / tokens
    assert (read_manifest(folder) or {})["held_out_loss"] == pytest.approx(expected, rel=1e-3)


def test_sft_is_kept_and_other_settings_are_refused(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train_sft(experiment)
    before = times(folder)
    capsys.readouterr()
    train_sft(experiment)
    assert "sft: finished before, kept" in capsys.readouterr().err
    assert times(folder) == before
    with pytest.raises(IntegrityError, match="was made from other data or settings; fix: delete it"):
        train_sft(replace(experiment, seed=1))
    assert experiment.sft is not None
    write_demonstrations(Path(experiment.sft.path), 9)
    with pytest.raises(IntegrityError, match="was made from other data or settings"):
        train_sft(experiment)
    assert times(folder) == before
    assert not [path for path in experiment.output_dir.iterdir() if path.name.startswith((".tmp", ".work"))]


def test_sft_of_the_answers_that_people_preferred(experiment: Experiment) -> None:
    section = SftSection(experiment.data.path, format="preference", arguments={"max_steps": 1})
    folder = train_sft(replace(experiment, sft=section))
    # `good ...` is preferred for kindness and brevity, but for the prompts that disagree: there each is rejected once.
    learned, _ = group_rows(open_rows(experiment.data.path)).split_held_out(4, 0)
    agreed = [group for group in learned if int(str(group.prompt).split(":")[0]) % 4 != 3]
    assert 0 < len(agreed) < len(learned)
    assert (read_manifest(folder) or {})["demonstrations"] == len(agreed)


def test_sft_on_conversations_in_half_precision(experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": [USER, ANSWER, USER, ANSWER]}) + "\n" for _ in range(4)))
    section = SftSection(str(path), arguments={"max_steps": 1})
    model = replace(experiment.model, dtype="bfloat16")
    folder = train_sft(replace(experiment, sft=section, model=model))
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"learning_rat": 1}, "sft.arguments.learning_rat: is no field of SFTConfig; fix: "),
        ({"seed": 3}, "sft.arguments.seed: has a place of its own; fix: set `seed` instead"),
        ({"lr_scheduler_type": "steep"}, "sft.arguments: steep is not a valid SchedulerType"),
    ],
)
def test_bad_sft_arguments_are_one_line(experiment_file: Path, arguments: dict[str, Any], said: str) -> None:
    experiment = read_experiment(experiment_file, ["model.model_name_or_path=nowhere/to/be/found"])
    assert experiment.sft is not None
    with pytest.raises(InputError) as caught:
        train_sft(replace(experiment, sft=replace(experiment.sft, arguments=arguments)))
    assert f"{experiment_file}:" in str(caught.value)
    assert said in str(caught.value)
    assert not experiment.output_dir.exists()


def test_a_loss_that_is_not_finite_leaves_nothing(experiment: Experiment) -> None:
    assert experiment.sft is not None
    section = replace(experiment.sft, arguments={"learning_rate": 1e30, "max_grad_norm": 0.0})
    with pytest.raises(NumericError, match="not finite"):
        train_sft(replace(experiment, sft=section))
    assert not (experiment.output_dir / "sft").exists()


def test_a_folder_of_something_else_is_not_replaced(experiment: Experiment) -> None:
    folder = experiment.output_dir / "sft"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something that modpo did not make"):
        train_sft(experiment)
    assert (folder / "thesis.txt").read_text() == "years of work"


# --- rewards ------------------------------------------------------------------------------------------------


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
    manifest = read_manifest(folder) or {}
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
    manifest = read_manifest(folder) or {}
    assert (manifest["beta"], manifest["kind"]) == (0.3, "implicit")
    assert (folder / "adapter_config.json").is_file()
    groups = group_rows(open_rows(experiment.data.path))[:2]
    batch = reward_batch(groups, range(2))
    scores = loaded(experiment, "friendly", folder)(batch)
    section = RewardSection(implicit=str(folder), beta=0.6)
    doubled = load_reward(section, RewardContext.of(experiment), where="here", name="friendly")(batch)
    assert doubled == pytest.approx([2 * score for score in scores])


def few_steps(experiment: Experiment, name: str) -> Experiment:
    """The experiment, whose objective of that name learns its reward in two steps."""
    section = experiment.objectives[name].reward
    assert section is not None
    assert section.train is not None
    train = replace(section.train, arguments={"learning_rate": 1e-3, "max_steps": 2})
    objective = replace(experiment.objectives[name], reward=replace(section, train=train))
    return replace(experiment, objectives={**experiment.objectives, name: objective})


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

    section = experiment.objectives[name].reward
    assert section is not None
    assert section.train is not None
    _, measured = group_rows(open_rows(experiment.data.path)).split_held_out(4, 0)
    for fewer in (1, 4, 7):  # its own held-out prompts, and the experiment's
        train = replace(section.train, eval_prompts=fewer)
        objective = replace(experiment.objectives[name], reward=replace(section, train=train))
        task: RewardTask = _task(replace(experiment, objectives={name: objective}), name)
        assert not set(task.learned.keys) & set(measured.keys)
        assert not set(task.learned.keys) & set(task.held_out.keys)
        assert len(task.held_out) == fewer
        assert len(task.learned) == 14 - max(4, fewer)


class Fixed:
    """A reward whose numbers are known."""

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = list(scores)
        self.identity: dict[str, Any] = {}
        self.scores_new_text = True

    def __call__(self, batch: RewardBatch) -> list[float]:
        return self.scores[: len(batch)]

    def release(self) -> None: ...


def test_held_out_accuracy_by_hand() -> None:
    """Prompt 1: a win and a loss; prompt 2: a tie. Wins 1 of 2 and 0.5 of 1: 1.5 of 3; both prompts are as the mean."""
    rows = [
        {"prompt": "1 ", "responses": ["a", "b", "c"], "pairs": [[0, 1], [2, 0]]},
        {"prompt": "2 ", "responses": ["a", "b"], "pairs": [[1, 0]]},
    ]
    groups = group_rows(rows_from_list(rows))
    found = held_out_accuracy(Fixed([2.0, 1.0, 0.0, 5.0, 5.0]), groups, "data")
    assert found == {"accuracy": 0.5, "se": 0.0, "pairs": 3, "prompts": 2}
    # Now prompt 2 is a win: 2 of 3; off by -1/3 and 1/3, so se = sqrt(2/1 * 2/9) / 3 = 2/9.
    found = held_out_accuracy(Fixed([2.0, 1.0, 0.0, 4.0, 5.0]), groups, "data")
    assert found == pytest.approx({"accuracy": 2 / 3, "se": 2 / 9, "pairs": 3, "prompts": 2})


def test_a_label_set_that_is_not_there(experiment: Experiment) -> None:
    section = experiment.objectives["brief"].reward
    assert section is not None
    assert section.train is not None
    objective = replace(
        experiment.objectives["brief"], reward=replace(section, train=replace(section.train, pairs="brevity"))
    )
    with pytest.raises(InputError, match=r"no pair of the label set 'brevity'; it has kind, brief; fix: "):
        train_reward(replace(experiment, objectives={"brief": objective}), "brief")


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
    section = experiment.objectives[name].reward
    assert section is not None
    assert section.train is not None
    objective = replace(
        experiment.objectives[name], reward=replace(section, train=replace(section.train, arguments=arguments))
    )
    with pytest.raises(InputError, match=said) as caught:
        train_reward(replace(experiment, objectives={**experiment.objectives, name: objective}), name)
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


# --- the pipeline -------------------------------------------------------------------------------------------


def test_an_experiment_without_stages_is_given_back(experiment: Experiment) -> None:
    plain = replace(without_sft(experiment), objectives={"kind": experiment.objectives["kind"]})
    assert prepare(plain) is plain


def test_from_one_file_to_the_front_and_nothing_the_second_time(
    experiment_file: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    from modpo.policies.steered_front import load_front

    assert main(["sweep", str(experiment_file)]) == 0
    said = capsys.readouterr().err
    names = ["sft", "reward brief", "reward friendly", "sweep", "evaluate", "report"]
    assert [line for line in said.splitlines() if line.startswith("stage ")] == [
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
