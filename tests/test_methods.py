"""The methods of a sweep on real rows and a real, small model: from rows to the report, and their own formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from modpo.combine import read_adapter
from modpo.errors import InputError
from modpo.evaluate import evaluate_sweep
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from modpo.front import Front
from modpo.publish import read_manifest
from modpo.report import write_report
from modpo.sweep import finished_points, run_sweep
from test_sweep import write_rows

BETWEEN = {"kind": 0.75, "concise": 0.25}


@dataclass(frozen=True)
class Ran:
    """A sweep that has run."""

    experiment: Experiment
    front: Front

    def point(self, number: int = 0) -> Path:
        return list(finished_points(self.experiment))[number].folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def file(folder: Path, tiny_model: Path) -> Path:
    write_rows(folder / "rows.jsonl")
    path = folder / "experiment.yaml"
    path.write_text(
        f"""
model: {{model_name_or_path: {tiny_model}, dtype: float32}}
lora: {{r: 4}}
data: {{path: {folder / "rows.jsonl"}, eval_prompts: 3, max_length: 64}}
objectives:
  kind:
    pairs: data
    reward: {{function: modpo.rewards.text:match_count, kwargs: {{pattern: "[a-e]"}}}}
  concise: {{reward: modpo.rewards.text:character_count, maximize: false, scale: 0.5, pairs: bradley_terry}}
training: {{per_device_train_batch_size: 4, learning_rate: 1e-2}}
sweep: {{grid: 2}}
evaluation: {{max_new_tokens: 8, bootstrap: 50, report_prompts: 2}}
cache_dir: {folder / "cache"}
"""
    )
    return path


@pytest.fixture(scope="module")
def read(file: Path, folder: Path) -> Callable[..., Experiment]:
    """`read(method, "training.beta=0.2", ...)`: the experiment by a method, in a folder of its own."""

    def read(method: str, *overrides: str, into: str = "") -> Experiment:
        output = f"output_dir={folder / (into or method)}"
        return read_experiment(file, [f"sweep.method={method}", output, *overrides])

    return read


def run(experiment: Experiment) -> Ran:
    assert run_sweep(experiment) == []
    front = evaluate_sweep(experiment)
    write_report(experiment.output_dir)
    return Ran(experiment, front)


def kept(experiment: Experiment) -> dict[str, int]:
    """When each file of the points was written."""
    points = list(finished_points(experiment))
    return {str(p.folder / name): (p.folder / name).stat().st_mtime_ns for p in points for name in p.files}


def assert_front(ran: Ran) -> None:
    """Two points between the objectives, measured, drawn, and kept by a second run."""
    vectors = [BETWEEN, {"kind": 0.25, "concise": 0.75}]
    assert [p.weights for p in ran.front.points] == vectors
    for name in ("front.json", "front.csv", "front.png", "report.html", "responses.jsonl"):
        assert (ran.experiment.output_dir / name).stat().st_size > 0, name
    before = kept(ran.experiment)
    assert run_sweep(ran.experiment) == []
    assert kept(ran.experiment) == before
    assert evaluate_sweep(ran.experiment) == ran.front


# --- soups --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def soups(read: Callable[..., Experiment]) -> Ran:
    return run(read("soups"))


def test_soups_from_rows_to_front(soups: Ran) -> None:
    assert_front(soups)
    for point in soups.front.points:
        assert point.kl.mean != 0
        assert point.audit is not None


def test_a_soup_is_the_average_of_its_ends(soups: Ran) -> None:
    """By module, B A of the point = 0.75 B A of one end + 0.25 B A of the other."""
    ends = [read_adapter(soups.experiment.output_dir / "ends" / name).updates for name in BETWEEN]
    for module, (a, b) in read_adapter(soups.point()).updates.items():
        mixed = sum(w * end[module][1] @ end[module][0] for w, end in zip(BETWEEN.values(), ends, strict=True))
        torch.testing.assert_close(b @ a, mixed)
        assert not torch.allclose(ends[0][module][1], ends[1][module][1])


def test_the_ends_of_a_soup_are_what_modpo_trains_there(soups: Ran, read: Callable[..., Experiment]) -> None:
    alone = read("modpo", "sweep={lattice: 1}", into="corners")
    run_sweep(alone)
    for name, point in zip(BETWEEN, finished_points(alone), strict=True):
        end = soups.experiment.output_dir / "ends" / name / "adapter_model.safetensors"
        assert end.read_bytes() == (point.folder / "adapter_model.safetensors").read_bytes()


def test_points_of_a_soup_share_the_cost_of_its_ends(soups: Ran) -> None:
    ends = [read_manifest(soups.experiment.output_dir / "ends" / name) or {} for name in BETWEEN]
    assert [p.cost.tokens for p in soups.front.points] == [sum(end["cost"]["tokens"] for end in ends) // 2] * 2


def test_a_soup_of_whole_models(read: Callable[..., Experiment]) -> None:
    """Each tensor is the weighted mean of the ends' tensors, and transformers reads the folder."""
    settings = ["lora=null", "training.learning_rate=1e-3"]
    experiment = read("soups", *settings, into="whole")
    assert run_sweep(experiment) == []
    point = next(finished_points(experiment)).folder
    ends = [load_file(experiment.output_dir / "ends" / name / "model.safetensors") for name in BETWEEN]
    found = dict(AutoModelForCausalLM.from_pretrained(point).named_parameters())
    moved = 0.0
    for name, tensor in found.items():
        if name in ends[0]:
            mixed = 0.75 * ends[0][name] + 0.25 * ends[1][name]
            torch.testing.assert_close(tensor.detach(), mixed)
            moved += float((ends[0][name] - ends[1][name]).abs().sum())
    assert moved > 0


def test_soups_of_objectives_with_pairs_alone(read: Callable[..., Experiment]) -> None:
    """Where MODPO needs a reward for one of them: at an end, an objective is alone."""
    overrides = [
        "objectives.concise.reward=null",
        "objectives.concise.calibration=none",
        "objectives.concise.pairs=data",
    ]
    overrides.append("objectives.kind.reward=null")
    assert len(read("soups", *overrides).sweep.weights) == 2
    with pytest.raises(InputError, match="only one objective enters by its pairs"):
        read("modpo", *overrides)


def test_saved_modules_are_refused_for_soups(read: Callable[..., Experiment]) -> None:
    with pytest.raises(InputError, match=r"lora.modules_to_save: does not go with `soups`; fix: leave it out"):
        read("soups", "lora.modules_to_save=[lm_head]")
