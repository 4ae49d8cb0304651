"""A folder with a model, data, a scorer and a cache, what is run in it, and what can be changed in it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from modpo.data.loading import load_groups
from modpo.data.prompt_group import PromptGroup
from modpo.data.tokens import tokenize_together
from modpo.experiment.sections import (
    DataSection,
    EvaluationSection,
    Experiment,
    LoraSection,
    ModelSection,
    Objective,
    RewardSection,
    SweepSection,
    TrainingSection,
)
from modpo.models.reference import ReferenceModel
from modpo.scored import scorer as scoring
from modpo.scored.data import ScoredData
from modpo.scored.of_experiment import experiment_scorer
from tests.kit import flip_a_bit, write_rows

SCORER = """
import os, signal
calls = []  # completions of each call

def score(prompts, completions, factor=1.0):
    calls.append(len(completions))
    if os.environ.get("KILL_AT") in prompts:
        os.kill(os.getpid(), signal.SIGKILL)
    words = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [factor * len(text) for text in words]
"""


def rows(count: int) -> list[dict[str, Any]]:
    """Prompts with two to four responses of different lengths, and a pair between the first two."""
    return [
        {
            "prompt": f"q{i}\n",
            "responses": [f"{'ab'[r % 2] * (1 + (i + 3 * r) % 7)}{r}" for r in range(2 + i % 3)],
            "pairs": [[i % 2, 1 - i % 2]],
            "grade": [float((i * r) % 5) for r in range(2 + i % 3)],
        }
        for i in range(count)
    ]


@dataclass
class Counted:
    """What one run computed: groups tokenized, completions scored, responses read by the reference."""

    tokens: int = 0
    rewards: int = 0
    reference: int = 0
    weights_read: bool = False

    @property
    def computed(self) -> set[str]:
        return {name for name in ("tokens", "rewards", "reference") if getattr(self, name)}


class House:
    """A folder with a model, data, a scorer and a cache, and what is run in it."""

    def __init__(self, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.model = shutil.copytree(model, folder / "model")
        self.data = write_rows(folder / "rows.jsonl", rows(12))
        self.write_scorer(SCORER)
        held_out = [{"prompt": "held out\n", "responses": ["x", "y"], "pairs": [[0, 1]], "grade": [1, 2]}]
        self.experiment = Experiment(
            model=ModelSection(str(self.model), dtype="float32"),
            data=DataSection(
                str(self.data), eval_path=str(write_rows(folder / "held_out.jsonl", held_out)), max_length=64
            ),
            objectives={
                "liked": Objective("liked", pairs="data"),
                "long": Objective("long", reward=RewardSection("scorer:score")),
            },
            training=TrainingSection(),
            sweep=SweepSection([{"liked": 0.5, "long": 0.5}]),
            evaluation=EvaluationSection(),
            output_dir=folder / "runs",
            cache_dir=folder / "cache",
            lora=LoraSection(r=2),
        )

    def write_scorer(self, source: str) -> None:
        """The module `scorer`, as a fresh process would import it."""
        place = self.folder / f"scorer-{len(list(self.folder.glob('scorer-*')))}"
        place.mkdir()
        (place / "scorer.py").write_text(source)
        self.monkeypatch.syspath_prepend(str(place))
        sys.modules.pop("scorer", None)
        self.scorer_folder = place

    def run(self, experiment: Experiment | None = None) -> tuple[ScoredData, Counted]:
        """Score the training data, as `modpo score` does."""
        experiment = experiment or self.experiment
        counted = Counted()
        import modpo.forward.frozen

        real_logps = modpo.forward.frozen.reference_logps

        def counting_tokens(groups: list[PromptGroup], *args: Any, **kwargs: Any) -> Any:
            counted.tokens += len(groups)
            return tokenize_together(groups, *args, **kwargs)

        def counting_logps(*args: Any, **kwargs: Any) -> list[float]:
            found = real_logps(*args, **kwargs)
            counted.reference += len(found)
            return found

        reference = ReferenceModel(experiment.model, experiment.cache_dir)
        with self.monkeypatch.context() as patch:
            patch.setattr(scoring, "tokenize_together", counting_tokens)
            patch.setattr(modpo.forward.frozen, "reference_logps", counting_logps)
            scorer = experiment_scorer(experiment, reference)
            calls = getattr(sys.modules.get("scorer"), "calls", [])
            calls.clear()
            scored = scorer.score(load_groups(experiment)[0])
        counted.rewards = sum(calls[2:])  # the first two probe whether it is deterministic
        counted.weights_read = "model" in vars(reference)
        return scored, counted


def with_(section: str, **changes: Any) -> Callable[[House], Experiment]:
    return lambda house: replace(house.experiment, **{section: replace(getattr(house.experiment, section), **changes)})


def with_reward(**changes: Any) -> Callable[[House], Experiment]:
    def change(house: House) -> Experiment:
        long = house.experiment.objectives["long"]
        changed = replace(long, reward=replace(long.reward, **changes))
        return replace(house.experiment, objectives={**house.experiment.objectives, "long": changed})

    return change


def in_the_model(change: Callable[[Path], None]) -> Callable[[House], Experiment]:
    def run(house: House) -> Experiment:
        change(house.model)
        return house.experiment

    return run


def flip_a_weight(model: Path) -> None:
    flip_a_bit(model / "model.safetensors")


def exchange_two_tokens(model: Path) -> None:
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer))


def begin_with_a_turn(model: Path) -> None:
    """The tokenizer gets a beginning-of-text of its own."""
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    number = tokenizer["model"]["vocab"]["<turn>"]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<turn>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<turn>": {"id": "<turn>", "ids": [number], "tokens": ["<turn>"]}},
    }
    path.write_text(json.dumps(tokenizer))


def edit_data_with_equal_size_and_time(house: House) -> Experiment:
    status, content = house.data.stat(), house.data.read_text()
    house.data.write_text(content.replace('"q7\\n"', '"Q7\\n"'))
    os.utime(house.data, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (house.data.stat().st_size, house.data.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    return house.experiment


def edit_the_scorer(house: House) -> Experiment:
    house.write_scorer(SCORER.replace("factor * len", "2 * factor * len"))
    return house.experiment


def move(house: House, what: str) -> Experiment:
    """The data, the cache or the model to another place, under another name."""
    experiment, elsewhere = house.experiment, house.folder / "elsewhere" / f"other-{what}"
    elsewhere.parent.mkdir()
    source = {"data": house.data, "cache": experiment.cache_dir, "model": house.model}[what]
    if what == "data":
        elsewhere = elsewhere.with_suffix(".jsonl")
    shutil.move(source, elsewhere)
    if what == "data":
        return replace(experiment, data=replace(experiment.data, path=str(elsewhere)))
    if what == "model":
        return replace(experiment, model=replace(experiment.model, model_name_or_path=str(elsewhere)))
    return replace(experiment, cache_dir=elsewhere)
