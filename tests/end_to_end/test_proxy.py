"""Methods that score answers of their own, by rewards learned from the labels of the given ones; on a tiny model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from modpo.base.errors import InputError
from modpo.cli import main
from modpo.data.sources import open_rows
from modpo.evaluation.scorers import load_evaluation_rewards
from modpo.experiment.file import read_experiment
from modpo.experiment.objectives import RewardSection
from modpo.experiment.proxy import PROXY, by_proxies, is_proxied, without_proxies
from modpo.experiment.sections import resolved
from modpo.front.ledger import Ledger, read_ledger
from modpo.front.schema import Front
from modpo.pipeline.reward import _task
from modpo.policies.steered_front import load_front
from modpo.scored.of_experiment import load_rewards, score_experiment
from tests.kit import SAMPLE, SAMPLED_DATA, WORDS, prompt_rows, write_experiment, write_rows

METHODS = ("modpo", "best_of_n", "morlhf")


PROXY_TRAINING = "proxy: {train: {kind: reward_model, eval_prompts: 2}}"


def write_comparison(folder: Path, model: Path, **sections: str) -> Path:
    write_rows(folder / "prompts.jsonl", prompt_rows((*WORDS, "bird", "wind")))
    given = {
        "sample": SAMPLE,
        "data": SAMPLED_DATA,
        "objectives": f"""
  long: {{pairs: bradley_terry, reward: modpo.rewards.text:character_count, scale: 0.5, {PROXY_TRAINING}}}
  short: {{pairs: bradley_terry, reward: modpo.rewards.text:word_count, maximize: false, {PROXY_TRAINING}}}""",
        "training": "{per_device_train_batch_size: 4}",
        "morlhf": "{max_steps: 2, num_generations: 2, per_device_train_batch_size: 4}",
        "best_of_n": "{n: 2}",
        "comparison": f"{{methods: [{', '.join(METHODS)}], seeds: [0]}}",
        "evaluation": "{max_new_tokens: 8, bootstrap: 20}",
    }
    return write_experiment(folder, model, **(given | sections))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a comparison that has run: `experiment.yaml`, `run/`, `cache/`."""
    folder = tmp_path_factory.mktemp("house")
    assert main(["sweep", str(write_comparison(folder, tiny_model))]) == 0
    return folder


def front(house: Path, method: str) -> Front:
    return load_front(house / "run" / method / "seed0")


def ledger(house: Path, method: str) -> Ledger:
    return read_ledger(house / "run" / method / "seed0")


def test_every_method_is_measured_by_the_rewards_themselves(house: Path) -> None:
    """Those that were trained by proxies too, in the rewards' own direction and from the same corner."""
    of_modpo = front(house, "modpo")
    for method in METHODS:
        found = front(house, method)
        assert [(o.name, o.maximize) for o in found.objectives] == [("long", True), ("short", False)]
        assert "character_count" in found.objectives[0].measured_by
        assert found.reference.scores == of_modpo.reference.scores
        assert found.hypervolume.reference_point == of_modpo.hypervolume.reference_point
        assert all(o.separate == (method != "modpo") for o in found.objectives)
    compared = json.loads((house / "run" / "comparison.json").read_text())
    assert set(compared["methods"]) == set(METHODS)


def test_proxies_are_trained_once_and_charged_to_those_that_need_them(house: Path) -> None:
    assert {path.parent.name for path in (house / "run").rglob("config.json")} == {"long", "short"}
    learned = {"train reward long", "train reward short"}
    assert not learned & {entry.stage for entry in ledger(house, "modpo").entries}
    for method in ("best_of_n", "morlhf"):
        stages = {entry.stage for entry in ledger(house, method).entries}
        assert learned | {"sample"} <= stages  # labels are of answers that somebody sampled
        assert "reference log-probs" not in stages


def test_a_sweep_of_the_comparison_is_an_experiment_of_its_own(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its file names the proxies that were learned; read again, it trains and measures nothing anew."""
    file = house / "run" / "morlhf" / "seed0" / "experiment.yaml"
    before = (file.parent / "front.json").read_text()
    for name in ("long", "short"):
        assert read_experiment(file).objectives[name].proxy.reward_model == str(house / "run" / "rewards" / name)
    assert all(
        o.proxy is None for o in read_experiment(file.parents[2] / "modpo/seed0/experiment.yaml").objectives.values()
    )
    capsys.readouterr()
    assert main(["evaluate", str(file)]) == 0
    assert "steps" not in capsys.readouterr().err
    assert (file.parent / "front.json").read_text() == before


def test_the_labels_that_a_proxy_learns_are_those_that_modpo_trains_on(house: Path) -> None:
    """Each with its response, in a proxy's rows and in MODPO's columns."""
    file = house / "experiment.yaml"
    experiment = replace(read_experiment(file), comparison=None)
    pairs = score_experiment(experiment).pairs["short"].open()["pairs"]
    rows = open_rows(experiment.data.path)
    of_data = {row["prompt"]: (row["responses"], drawn) for row, drawn in zip(rows, pairs, strict=True)}
    task = _task(experiment, "short", PROXY)
    assert task.field == "objectives.short.proxy.train"
    learned = [*task.learned, *task.held_out]
    assert len(task.held_out) == 2
    assert len(learned) == len(of_data)
    for group in learned:
        responses, drawn = of_data[group.prompt]
        texts = [[group.responses[i] for i in pair] for pair in group.pairs["bradley_terry"]]
        assert texts == [[responses[i] for i in pair] for pair in drawn]


def test_a_proxy_stands_for_the_reward_where_new_answers_are_scored(house: Path) -> None:
    experiment = read_experiment(house / "experiment.yaml")
    proxied = by_proxies(resolved(experiment))
    for name, objective in proxied.objectives.items():
        own = experiment.objectives[name]
        assert is_proxied(proxied, name)
        assert not is_proxied(resolved(experiment), name)
        assert objective.reward == own.proxy
        assert math.isclose(objective.sign, 1.0)
        assert proxied.evaluation.rewards[name] == own.reward
    assert not any(is_proxied(resolved(without_proxies(experiment)), name) for name in experiment.objectives)


def test_what_cannot_be_had_is_named_by_its_place_in_the_file(house: Path, tmp_path: Path) -> None:
    """Where a proxy stands for a reward, and the reward measures, both keep the names that the file gives them."""
    experiment = read_experiment(house / "experiment.yaml")
    long = replace(
        experiment.objectives["long"],
        proxy=RewardSection(reward_model=str(tmp_path)),
        reward=RewardSection(function="no.such:function"),
    )
    proxied = by_proxies(resolved(replace(experiment, objectives={"long": long})))
    for load, place in (
        (load_rewards, "objectives.long.proxy.reward_model"),
        (load_evaluation_rewards, "objectives.long.reward"),
    ):
        with pytest.raises(InputError) as caught:
            load(proxied)
        assert [problem.field for problem in caught.value.problems] == [place]


def test_a_sweep_by_a_method_that_samples_trains_its_proxies(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone as in a comparison; what another method trains does not depend on them."""
    file, sweep = str(house / "experiment.yaml"), "sweep={grid: 2, method: best_of_n}"
    alone = ["--set", "comparison=null", "--set", f"output_dir={house / 'alone'}"]
    assert main(["sweep", file, *alone, "--set", sweep, "--no-evaluate"]) == 0
    assert "stage 2 of 4: proxy long" in capsys.readouterr().err
    assert (house / "alone" / "rewards" / "short" / "model.safetensors").is_file()

    modpo = ["--set", "comparison=null", "--set", f"output_dir={house / 'modpo'}", "--no-evaluate"]
    assert main(["sweep", file, *modpo, "--set", "objectives.long.proxy=null"]) == 0
    assert not (house / "modpo" / "rewards").exists()
    assert "steps" in capsys.readouterr().err
    assert main(["sweep", file, *modpo]) == 0
    assert "steps" not in capsys.readouterr().err


def test_modpo_reward_trains_proxies(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of a method that has no use for them too, and once."""
    alone = ["--set", "comparison=null", "--set", f"output_dir={house / 'learned'}"]
    assert main(["reward", str(house / "experiment.yaml"), *alone]) == 0
    assert "stage 3 of 3: proxy short" in capsys.readouterr().err
    assert {path.name for path in (house / "learned" / "rewards").iterdir()} == {"long", "short"}
    assert main(["reward", str(house / "experiment.yaml"), *alone]) == 0
    assert "steps" not in capsys.readouterr().err  # kept


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "objectives.long.proxy={column: rated}",
            "objectives.long.proxy: is a column of the data, which cannot score new",
        ),
        (
            "objectives.long.reward={train: reward_model}",
            "objectives.long.proxy: would stand in for a reward that is learned",
        ),
        (
            "objectives.long={reward: a:b, proxy: {train: {kind: implicit, pairs: bradley_terry}}}",
            "objectives.long.proxy.train.pairs: would be drawn from the reward that is to be",
        ),
        ("objectives.long.proxy={train: {kind: guess}}", "objectives.long.proxy.train.kind: is 'guess'"),
        (
            "objectives.long.proxy={train: {kind: implicit, pairs: bradley_terry, path: rows.jsonl}}",
            "objectives.long.proxy.train: labels are drawn for the responses of `data`, and of no other rows",
        ),
        ("objectives.long.proxy={function: nowhere}", "objectives.long.proxy.function: 'nowhere' names no function"),
    ],
)
def test_what_can_be_no_proxy_is_said(tmp_path: Path, tiny_model: Path, override: str, said: str) -> None:
    path = write_comparison(tmp_path, tiny_model)
    with pytest.raises(InputError) as raised:
        read_experiment(path, [override])
    assert said in str(raised.value)


def test_a_column_can_be_compared_with_a_proxy(tmp_path: Path, tiny_model: Path) -> None:
    path = write_comparison(tmp_path, tiny_model)
    ratings = {"pairs": "tone", "reward": {"column": "tone"}, "proxy": {"train": {"kind": "implicit", "pairs": "tone"}}}
    measured = "evaluation.rewards={long: modpo.rewards.text:character_count}"
    for known in (ratings, {**ratings, "reward": None}):
        read_experiment(path, [f"objectives.long={json.dumps(known)}", measured])
        with pytest.raises(
            InputError, match=r"would measure what `method: best_of_n` trains by it; fix: name a scorer in"
        ):
            read_experiment(path, [f"objectives.long={json.dumps(known)}"])
    with pytest.raises(InputError, match="cannot score new answers, as `method: best_of_n` needs"):
        read_experiment(path, [f"objectives.long={json.dumps({**ratings, 'proxy': None})}"])


def test_a_proxy_that_cannot_be_had_is_said_before_anything_is_sampled(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_comparison(tmp_path, tiny_model)
    for proxy in ("function: nowhere.at:all", "reward_model: /nowhere"):
        assert main(["sweep", str(path), "--set", f"objectives.long.proxy={{{proxy}}}"]) == 2
        assert "objectives.long.proxy" in capsys.readouterr().err
    assert not (tmp_path / "rows.jsonl").exists()
