"""Experiment files, what the command line sets in them, and preference vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modpo.base.simplex import read_weights
from modpo.cli.train import read_option
from modpo.experiment.file import read_experiment, to_yaml
from modpo.experiment.sections import Experiment
from tests.fuzz.cases import fuzz, survives
from tests.fuzz.mutations import altered, json_values, mutated

GOOD = """\
# an experiment
model: {model_name_or_path: some/model, dtype: float32}
lora:
  r: 4
  target_modules: [q_proj, v_proj]
sft: {path: demonstrations.jsonl, arguments: {learning_rate: 1e-4}}
sample: {prompts: prompts.jsonl, held_out: 2}
data: {path: rows.jsonl, eval_prompts: 3, max_length: 64}
objectives:
  kind: {pairs: data}
  safe: {reward: {train: {kind: implicit, pairs: safer}}, calibration: standardise}
  concise:
    reward:
      clip: [-9, 0]
      sum:
        - {column: words, weight: 0.5}
        - {function: "a.b:c", kwargs: {x: [1, null]}, weight: -1}
    maximize: false
    scale: 0.5
training: {beta: 0.2, objective: kind, learning_rate: 5e-4, warmup_steps: 0.1, arguments: {adam_beta1: 0.8}}
sweep: {weights: [{kind: 0.5, safe: 0.25, concise: 0.25}, {kind: 1}], normalize: true}
evaluation: {max_new_tokens: 8, bootstrap: 50}
output_dir: runs/x
seed: 3
"""
PATHS = ("training.beta", "sweep.lattice", "sweep.weights", "objectives.kind", "objectives.concise.reward", "lora.r")


def read(path: Path, overrides: tuple[str, ...] = ()) -> Experiment:
    """An experiment, which can be written and read again."""
    experiment = read_experiment(path, overrides)
    path.with_suffix(".again.yaml").write_text(to_yaml(experiment), "utf-8")
    assert read_experiment(path.with_suffix(".again.yaml")) == experiment
    return experiment


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiments") / "experiment.yaml"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    path = tmp_path_factory.mktemp("good") / "experiment.yaml"
    path.write_text(GOOD)
    return read(path)


@fuzz
@given(content=mutated(GOOD.encode()))
def test_damaged_files(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    survives(read, file)


@fuzz
@given(content=altered(yaml.safe_load(GOOD)))
def test_other_values(content: Any, file: Path) -> None:
    file.write_text(yaml.safe_dump(content, allow_unicode=True, default_flow_style=None), "utf-8", "surrogatepass")
    survives(read, file)


@fuzz
@given(content=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    survives(read, file)


@fuzz
@given(assignments=st.lists(st.tuples(st.sampled_from(PATHS) | st.text(max_size=20), json_values), max_size=3))
def test_any_overrides(assignments: list[tuple[str, Any]], file: Path) -> None:
    file.write_text(GOOD)
    written = (f"{path}={yaml.safe_dump(value, default_flow_style=True)}" for path, value in assignments)
    survives(read, file, tuple(written))


@fuzz
@given(text=st.text(max_size=60))
def test_any_override(text: str, file: Path) -> None:
    file.write_text(GOOD)
    survives(read, file, (text,))


NUMBERS = st.sampled_from(["0.5", "1", "0", "-1", "nan", "inf", "1e999", "0,7", "1_0", "half", "", " 0.25 ", "0x1"])
NAMES = ("kind", "safe", "concise")
PAIRS = st.tuples(st.sampled_from([*NAMES, "other", "", " "]), st.sampled_from(["=", "", "=="]), NUMBERS)
# Three weights that sum to 1, or nearly; and numbers of any size.
SHARES = st.lists(st.integers(0, 9), min_size=3, max_size=3).map(lambda n: [i / max(sum(n), 1) for i in n])
WEIGHTS = SHARES | st.lists(st.floats() | st.integers() | st.just(1e308) | st.just(10**400), min_size=3, max_size=3)


@fuzz
@given(
    text=st.lists(PAIRS.map("".join), max_size=5).map(",".join)
    | WEIGHTS.map(lambda weights: ",".join(f"{n}={w}" for n, w in zip(NAMES, weights, strict=True)))
    | st.text(max_size=30)
)
def test_weights_on_the_command_line(text: str, experiment: Experiment) -> None:
    weights = survives(read_option, text, experiment)
    assert weights is None or abs(sum(weights.values()) - 1) < 1e-5


@fuzz
@given(
    given_weights=WEIGHTS.map(lambda weights: dict(zip(NAMES, weights, strict=True)))
    | st.dictionaries(st.sampled_from([*NAMES, "other"]), json_values)
    | json_values,
    normalize=st.booleans(),
)
def test_weights_of_any_kind(given_weights: Any, normalize: bool) -> None:
    weights = survives(read_weights, given_weights, NAMES, where="here", normalize=normalize)
    assert weights is None or abs(sum(weights.values()) - 1) < 1e-5
