"""Every recipe can be run as it stands: its files are experiments, its commands fit them, and with rows of the layout
that it names and a small model, nothing is refused before training.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from modpo.cli import _parser
from modpo.data.formats import FORMATS
from modpo.data.groups import group_rows
from modpo.data.rows import rows_from_list
from modpo.evaluation.evaluate import require_measurable
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment, RewardSection
from modpo.pipeline.preflight import check_training
from modpo.pipeline.reward import _config, _task
from tests.kit import write_rows

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
FILES = sorted(RECIPES.glob("*/*.yaml"))
PAGES = sorted(RECIPES.rglob("README.md"))
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
SUFFIXES = (".json", ".jsonl", ".parquet", ".gz")
HELD_OUT = 4
ROWS = 16


def file_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the commands of the pages run."""
    monkeypatch.chdir(ROOT)


# --- the files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=file_name)
def test_a_recipe_is_a_whole_experiment(file: Path) -> None:
    experiment = read_experiment(file)
    assert len(experiment.objectives) >= 2
    assert len(experiment.sweep.weights) >= 3
    assert experiment.output_dir.parent == Path("runs")
    page = file.with_name("README.md")
    if page.is_file():
        assert f"modpo sweep {file_name(file)}" in page.read_text("utf-8")


def test_no_two_recipes_share_a_folder_of_results() -> None:
    folders = [read_experiment(file).output_dir for file in FILES]
    assert len(set(folders)) == len(folders)


def texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from texts(value)
    elif isinstance(node, str):
        yield node


@pytest.mark.parametrize("file", FILES, ids=file_name)
def test_nothing_names_a_place_on_one_machine(file: Path) -> None:
    named = list(texts(yaml.safe_load(file.read_text("utf-8"))))
    assert [text for text in named if text.startswith(("/", "~", "..", "\\")) or ":\\" in text] == []


def sources(experiment: Experiment) -> Iterator[str]:
    """Models by name."""
    yield experiment.model.model_name_or_path
    rewards = [o.reward for o in experiment.objectives.values()] + list(experiment.evaluation.rewards.values())
    for reward in rewards:
        yield from _models(reward)


def _models(reward: RewardSection | None) -> Iterator[str]:
    if reward is not None:
        yield from (name for name in (reward.reward_model, reward.implicit, reward.reference) if name is not None)
        for part in reward.sum or []:
            yield from _models(part)


@pytest.mark.parametrize("file", FILES, ids=file_name)
def test_models_and_data_are_named_as_the_hub_names_them(file: Path) -> None:
    """Or are the embedded model, and a file of the repository that the page names."""
    experiment = read_experiment(file)
    for name in sources(experiment):
        assert name == "smollm2-135m-instruct" or HUB_NAME.fullmatch(name), name
    if experiment.sample is None:
        for path in (experiment.data.path, experiment.data.eval_path):
            assert path is None or path.endswith(SUFFIXES) or HUB_NAME.fullmatch(path), path


@pytest.mark.parametrize("file", [file for file in FILES if file.name == "gpu.yaml"], ids=file_name)
def test_full_size_has_the_settings_of_the_paper(file: Path) -> None:
    experiment = read_experiment(file)
    assert "7B" in experiment.model.model_name_or_path
    assert experiment.lora is not None
    assert (experiment.lora.r, experiment.lora.lora_alpha, experiment.lora.lora_dropout) == (64, 1, 0)
    training = experiment.training
    assert (training.learning_rate, training.num_train_epochs, training.beta) == (5e-4, 3, 0.1)
    for weights in experiment.sweep.weights:
        assert all(round(5 * weight, 6).is_integer() for weight in weights.values())
    assert "training.beta=0.5" in file.with_name("README.md").read_text("utf-8")


# --- the pages ----------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, ...]]:
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), flags=re.M | re.S):
            yield from (tuple(shlex.split(line)[1:]) for line in block.splitlines() if line.startswith("modpo "))


@pytest.mark.parametrize("arguments", sorted(set(commands())), ids=" ".join)
def test_commands_fit_their_files(arguments: tuple[str, ...]) -> None:
    parsed = _parser().parse_args(arguments)
    assert Path(parsed.experiment) in [file.relative_to(ROOT) for file in FILES]
    read_experiment(parsed.experiment, parsed.overrides)


@pytest.mark.parametrize("page", PAGES, ids=file_name)
def test_links_lead_somewhere(page: Path) -> None:
    for path in re.findall(r"\[[^]]*\]\((?!\w+://)([^)#\s]+)", page.read_text("utf-8")):
        assert (page.parent / path).exists(), path


def test_a_recipe_says_what_was_run() -> None:
    """A page shows results, or says that there are none."""
    for page in RECIPES.glob("*/README.md"):
        text = page.read_text("utf-8")
        assert ("results/" in text) == (page.parent / "results").is_dir()
        assert "Not run yet" in text or "results/" in text


# --- before training ----------------------------------------------------------------------------------------


def layout(name: str, i: int) -> dict[str, Any]:
    """A row as the data set of that format has it, one of many."""
    word = ["bridge", "river", "tower", "garden"][i % 4]
    rows: dict[str, dict[str, Any]] = {
        "hh_rlhf": {
            "chosen": f"\n\nHuman: {i}, the {word}?\n\nAssistant: It is old.",
            "rejected": f"\n\nHuman: {i}, the {word}?\n\nAssistant: It is old, and that is all that I would say of it.",
        },
        "pku_saferlhf": {
            "prompt": f"How do I climb the {word}, {i}?",
            "response_0": "By the stairs.",
            "response_1": "From outside, at night.",
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "better_response_id": i % 2,
            "safer_response_id": 0,
        },
        "sharegpt": {
            "conversations": [{"from": "human", "value": f"Tell me of the {word}, {i}."}],
            "chosen": {"from": "gpt", "value": "It was built by two brothers."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        "qa_feedback": _question(i, word),
    }
    return rows[name]


def _question(i: int, word: str) -> dict[str, Any]:
    """With a false and an irrelevant sentence, and one that is missing, so that each label set has a pair."""
    answer = f"The {word} opened in 1901. It is at sea. Cats are fun."
    errors = [("Wrong-Grounding", "It is at sea."), ("Irrelevant", "Cats are fun.")]
    spans = [
        {"error type": kind, "explanation": "", "start": answer.index(said), "end": answer.index(said) + len(said)}
        for kind, said in errors
    ]
    return {
        "question": f"When did the {word} open, {i}?",
        "passages": [[word.title(), f"The {word} opened in 1901.", "It closed in 1970."]],
        "gold": "It opened in 1901 and closed in 1970.",
        "prediction 1": answer,
        "prediction 2": "In 1970.",
        "prediction 3": "In 1901.",
        "prediction 4": "Long ago.",
        "feedback": {
            "errors": spans,
            "missing-info": [{"error type": "Missing-Answer", "passage_id": 0, "sentence_id": [1]}],
            "corrected-prediction": f"The {word} opened in 1901. It closed in 1970.",
        },
        "preference": [2, 2, 1, 0, 1, 1],
    }


@pytest.mark.parametrize("name", ["hh_rlhf", "pku_saferlhf", "sharegpt", "qa_feedback"])
def test_the_rows_here_are_of_their_layout(name: str) -> None:
    groups = group_rows(rows_from_list([layout(name, i) for i in range(4)]), format=name)
    assert len(groups) == 4
    assert name in FORMATS


def written(folder: Path, format: str, *, first: int) -> Path:
    """Rows that no other file has."""
    rows = [layout(format.removesuffix("_spans"), i) for i in range(first, first + ROWS)]
    return write_rows(folder / f"{format}-{first}.jsonl", rows)


def on_small_rows(file: Path, folder: Path, tiny_model: Path) -> Experiment:
    """The recipe with a small model, and rows of the same layout in place of the data; everything else is its own."""
    experiment = read_experiment(file)
    data = experiment.data
    overrides = [
        f"model={{model_name_or_path: {tiny_model}, dtype: float32}}",
        "evaluation.rewards={}",  # models of the Hub
        f"data.eval_prompts={HELD_OUT}",
        f"output_dir={folder / 'run'}",
        f"cache_dir={folder / 'cache'}",
    ]
    if experiment.sample is None:
        overrides.append(f"data.path={written(folder, data.format, first=0)}")
        if data.eval_path is not None:
            overrides.append(f"data.eval_path={written(folder, data.eval_format or data.format, first=100)}")
    for name, objective in experiment.objectives.items():
        train = objective.reward.train if objective.reward else None
        if train is not None:
            at = f"objectives.{name}.reward.train"
            overrides.append(f"{at}.eval_prompts={HELD_OUT}")
            if train.path is not None:
                overrides.append(f"{at}.path={written(folder, train.format or data.format, first=200)}")
    return read_experiment(file, overrides)


@pytest.mark.parametrize("file", FILES, ids=file_name)
def test_nothing_is_refused_before_training(file: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Rows, label sets, tokens, rewards, adapters, the settings of every trainer."""
    experiment = on_small_rows(file, tmp_path, tiny_model)
    check_training(experiment, experiment.sweep.weights[0])
    if experiment.sample is not None:
        return  # its data is still to be sampled
    require_measurable(experiment)
    for name, objective in experiment.objectives.items():
        if objective.reward is not None and objective.reward.train is not None:
            task = _task(experiment, name)
            assert len(task.learned) > 0
            assert len(task.held_out) == HELD_OUT
            _config(task)
