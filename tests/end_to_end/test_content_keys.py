"""Every setting that changes a number makes new columns, just those that it changes; nothing else makes any.

What is new is read off the disk: the folders that a run adds to the cache of an earlier one. That the numbers are
right is tests/scored/test_scorer.py's.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modpo.experiment.sections import Experiment, LoraSection, Objective, RewardSection
from tests.kit import write_rows
from tests.scored.house import (
    House,
    begin_with_a_turn,
    edit_data_with_equal_size_and_time,
    edit_the_scorer,
    exchange_two_tokens,
    flip_a_weight,
    in_the_model,
    move,
    with_,
)

KINDS = {"tokens", "reference", "reward", "pairs", "samples", "calibration"}
Edit = Callable[[House], Experiment]


def furnished(house: House) -> House:
    """With all six kinds of what is kept: an objective standardised on answers, and one fitted on its pairs."""
    house.experiment = replace(
        house.experiment,
        objectives={
            "liked": Objective("liked", pairs="data"),
            "long": Objective("long", reward=RewardSection("scorer:score"), calibration="standardise"),
            "graded": Objective(
                "graded", pairs="data", reward=RewardSection(column="grade"), calibration="bradley_terry"
            ),
        },
    )
    return house


def kept(experiment: Experiment) -> set[str]:
    """The cache's folders: `<kind>-<key>`."""
    return {path.name for path in (experiment.cache_dir / "scored").iterdir()}


def kinds(folders: set[str]) -> set[str]:
    return {name.rpartition("-")[0] for name in folders}


@pytest.fixture(scope="module")
def filled_cache(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """What a run left behind in another folder, with another copy of the model and the data."""
    with pytest.MonkeyPatch.context() as patch:
        house = furnished(House(tmp_path_factory.mktemp("before"), tiny_model, patch))
        house.run()
        assert kinds(kept(house.experiment)) == KINDS
        return house.experiment.cache_dir


@pytest.fixture
def house(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, filled_cache: Path) -> Iterator[House]:
    made = furnished(House(tmp_path, tiny_model, monkeypatch))
    shutil.copytree(filled_cache, made.experiment.cache_dir)
    yield made
    sys.modules.pop("scorer", None)


def objective(name: str, **changes: Any) -> Edit:
    def edit(house: House) -> Experiment:
        objectives = house.experiment.objectives
        return replace(house.experiment, objectives={**objectives, name: replace(objectives[name], **changes)})

    return edit


def reward(name: str, **changes: Any) -> Edit:
    def edit(house: House) -> Experiment:
        section = house.experiment.objectives[name].reward
        assert section is not None
        return objective(name, reward=replace(section, **changes))(house)

    return edit


SAMPLED = {"samples", "calibration"}  # `long` is standardised on answers that are sampled

MISSES: dict[str, tuple[Edit, set[str]]] = {
    "tokenizer: vocabulary": (in_the_model(exchange_two_tokens), {"tokens", "pairs", "reference"} | SAMPLED),
    "tokenizer: beginning of text": (in_the_model(begin_with_a_turn), {"tokens", "pairs", "reference"} | SAMPLED),
    "max_length": (with_("data", max_length=6), {"tokens", "pairs", "reference"}),
    "truncation of the prompt": (with_("data", max_prompt_length=2), {"tokens", "pairs", "reference"}),
    "dtype": (with_("model", dtype="bfloat16"), {"reference"} | SAMPLED),
    "base weights": (in_the_model(flip_a_weight), {"reference"} | SAMPLED),
    "how the reference reads": (with_("training", packing=False), {"reference"}),
    "reward: source": (edit_the_scorer, {"reward", "calibration"}),
    "reward: kwargs": (reward("long", kwargs={"factor": 2.0}), {"reward", "calibration"}),
    "reward: clip": (reward("long", clip=[0.0, 30.0]), {"reward", "calibration"}),
    "reward: part of a sum": (
        objective("long", reward=RewardSection(sum=[RewardSection("scorer:score", weight=0.5)])),
        {"reward", "calibration"},
    ),
    "reward: gaps": (reward("graded", missing="drop"), {"reward"}),
    "calibration: method": (objective("graded", calibration="standardise"), {"calibration"}),
    "calibration: of drawn pairs": (objective("long", pairs="bradley_terry"), {"pairs"}),
    "data of equal size and time": (edit_data_with_equal_size_and_time, KINDS),
    "fewer prompts": (with_("data", max_prompts=4), KINDS),
}


@pytest.mark.parametrize("edit", MISSES)
def test_what_changes_a_number_is_missed(house: House, edit: str) -> None:
    change, expected = MISSES[edit]
    before = kept(house.experiment)
    experiment = change(house)
    house.run(experiment)
    assert kinds(kept(experiment) - before) == expected


def test_drawn_pairs_are_keyed_by_their_calibration(house: House) -> None:
    """The same rewards under another calibration give other labels."""
    house.run(objective("long", pairs="bradley_terry")(house))
    before = kept(house.experiment)
    experiment = objective("long", pairs="bradley_terry", calibration="none")(house)
    house.run(experiment)
    assert kinds(kept(experiment) - before) == {"pairs"}


def test_the_chat_template_is_missed(house: House) -> None:
    chat = [
        {
            "prompt": [{"role": "user", "content": f"question {i}"}],
            "chosen": [{"role": "assistant", "content": "yes" * (i % 3 + 1)}],
            "rejected": [{"role": "assistant", "content": "no"}],
            "chosen_grade": 1.0 + i,
            "rejected_grade": 0.0,
        }
        for i in range(8)
    ]
    write_rows(house.data, chat)
    experiment = replace(
        house.experiment,
        data=replace(house.experiment.data, eval_path=str(write_rows(house.folder / "held_out.jsonl", chat[:1]))),
    )
    house.run(experiment)
    before = kept(experiment)
    path = house.model / "chat_template.jinja"
    path.write_text(path.read_text().replace("{{ m['role'] }}\n", "{{ m['role'] }}: "))
    house.run(experiment)
    assert kinds(kept(experiment) - before) == {"tokens", "pairs", "reference"} | SAMPLED


def touch(house: House) -> Experiment:
    """A year in the past, and one in the future."""
    for path in [house.data, *house.model.iterdir()]:
        os.utime(path, (1, 1))
    for path in house.experiment.cache_dir.rglob("*"):
        os.utime(path, (2**31, 2**31))
    return house.experiment


def rename_the_model(house: House) -> Experiment:
    path = house.model / "config.json"
    config = json.loads(path.read_text()) | {"_name_or_path": "another/name", "transformers_version": "9.9"}
    path.write_text(json.dumps(config))
    return house.experiment


def renamed(house: House) -> Experiment:
    objectives = house.experiment.objectives
    others = {f"other-{name}": replace(objectives[name], name=f"other-{name}") for name in reversed(objectives)}
    return replace(house.experiment, objectives=others)


HITS: dict[str, Edit] = {
    "nothing": lambda house: house.experiment,
    "w": with_("sweep", weights=[{"liked": 0.2, "long": 0.3, "graded": 0.5}]),
    "beta": with_("training", beta=0.5),
    "loss": with_("training", loss_type="hinge", objective="graded", scale_loss_by_weight=False),
    "optimizer": with_("training", learning_rate=1e-6, num_train_epochs=3.0, per_device_train_batch_size=2),
    "seed": lambda house: replace(house.experiment, seed=7),
    "lora": lambda house: replace(house.experiment, lora=LoraSection(r=8)),
    "all weights": lambda house: replace(house.experiment, lora=None),
    "path of the run": lambda house: replace(house.experiment, output_dir=house.folder / "other-runs"),
    "name of the experiment": lambda house: replace(house.experiment, source="another.yaml"),
    "place of the data": lambda house: move(house, "data"),
    "place of the cache": lambda house: move(house, "cache"),
    "place of the model": lambda house: move(house, "model"),
    "name of the model": rename_the_model,
    "times": touch,
    "names and order of objectives": renamed,
    "direction and scale": objective("long", maximize=False, scale=3.0),
    "unit": objective("graded", unit="points"),
    "measuring": with_(
        "evaluation", bootstrap=10, report_prompts=1, samples_per_prompt=2, max_new_tokens=5, batch_size=3
    ),
}


@pytest.mark.parametrize("edit", HITS)
def test_what_changes_no_number_is_hit(house: House, edit: str) -> None:
    before = kept(house.experiment)
    experiment = HITS[edit](house)
    _, counted = house.run(experiment)
    assert kept(experiment) - before == set()
    assert counted.computed == set()
    assert not counted.weights_read
