"""The methods of a sweep on real rows and a real, small model: from rows to the report, and their own formulas."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from modpo.base.errors import InputError, IntegrityError
from modpo.base.files import read_manifest
from modpo.base.simplex import spread_out
from modpo.cli import main
from modpo.evaluation.evaluate import evaluate_sweep
from modpo.experiment.file import read_experiment, to_yaml
from modpo.experiment.sections import Experiment
from modpo.front.schema import Front
from modpo.methods.sweep import finished_points, run_sweep
from modpo.models.combine import read_adapter
from modpo.policies.steered_front import load_front
from modpo.report import write_report
from tests.kit import preference_rows, write_experiment, write_rows

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
    write_rows(folder / "rows.jsonl", preference_rows())
    return write_experiment(
        folder,
        tiny_model,
        objectives="""
  kind:
    pairs: data
    reward: {function: modpo.rewards.text:match_count, kwargs: {pattern: "[a-e]"}}
  concise: {reward: modpo.rewards.text:character_count, maximize: false, scale: 0.5, pairs: bradley_terry}""",
        evaluation="{max_new_tokens: 8, bootstrap: 50, report_prompts: 2}",
        output_dir=None,
    )


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


def steps(policy: Path) -> int:
    """Optimizer steps of its training."""
    return int(json.loads((policy / "training_log.json").read_text())[-1]["step"])


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


# --- loss weighting -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loss_weighting(read: Callable[..., Experiment]) -> Ran:
    return run(read("loss_weighting"))


def test_loss_weighting_from_rows_to_front(loss_weighting: Ran, soups: Ran) -> None:
    """The same numbers of steps as at an end of the soup; its loss itself is tested in test_loss_weighting.py."""
    assert_front(loss_weighting)
    points = [point.folder for point in finished_points(loss_weighting.experiment)]
    ends = [soups.experiment.output_dir / "ends" / name for name in BETWEEN]
    assert [steps(point) for point in points] == [steps(end) for end in ends]
    first, second = ((p / "adapter_model.safetensors").read_bytes() for p in points)
    assert first != second


def test_loss_weighting_needs_pairs_of_each_objective(read: Callable[..., Experiment]) -> None:
    with pytest.raises(InputError) as refused:
        read("loss_weighting", "objectives.concise.pairs=null")
    assert str(refused.value).endswith(
        "objectives.concise: has no pairs, which `method: loss_weighting` trains on; "
        "fix: name a label set in `pairs`, or draw them from its reward: `pairs: bradley_terry`"
    )


def test_a_folder_of_another_method_is_refused(loss_weighting: Ran, read: Callable[..., Experiment]) -> None:
    other = read("modpo", into="loss_weighting")
    for command in (run_sweep, evaluate_sweep):
        with pytest.raises(IntegrityError, match=r"sweep\.method differ"):
            command(other)


# --- best of n ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def best_of_n(read: Callable[..., Experiment]) -> Ran:
    return run(read("best_of_n", "best_of_n={n: 3}", "evaluation.samples_per_prompt=2"))


def answers(ran: Ran, policy: str) -> list[dict[str, Any]]:
    path = ran.experiment.output_dir / "evaluation" / policy / "responses.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def pool(ran: Ran) -> list[dict[str, Any]]:
    """What the vectors have chosen from, beside the answers of the reference: 2 times 3 to each prompt."""
    found = (ran.experiment.cache_dir / "evaluation").glob("*/best_of_n/responses.jsonl")
    pools = [[json.loads(line) for line in path.read_text().splitlines()] for path in found]
    return next(answers for answers in pools if len(answers) == 3 * 2 * 3)


def test_best_of_n_from_rows_to_front(best_of_n: Ran) -> None:
    assert_front(best_of_n)
    for point in best_of_n.front.points:
        assert (point.best_of_n, point.adapter, point.audit) == (3, None, None)
        assert (point.cost.seconds, point.cost.tokens) == (0, 0)
        assert (point.kl.mean, point.kl.se) == (pytest.approx(math.log(3) - 2 / 3), 0.0)
    assert json.loads((best_of_n.point() / "best_of_n.json").read_text()) == {"n": 3, "weights": BETWEEN}


def test_the_best_of_each_three_is_chosen(best_of_n: Ran) -> None:
    """Two answers to each of 3 prompts, each the best of three of the pool by w . (sign * scale * reward)."""
    candidates = pool(best_of_n)
    assert [a["prompt_index"] for a in candidates] == [0] * 6 + [1] * 6 + [2] * 6
    differ = False
    for point in best_of_n.front.points:
        w = point.weights or {}
        sums = [w["kind"] * a["rewards"]["kind"] - w["concise"] * 0.5 * a["rewards"]["concise"] for a in candidates]
        for number, chosen in enumerate(answers(best_of_n, point.name)):
            three = range(3 * number, 3 * number + 3)
            best = max(three, key=sums.__getitem__)
            assert {**chosen, "policy": "best_of_n", "weights": None} == {
                **candidates[best],
                "kl": math.log(3) - 2 / 3,
                "sampled_tokens": sum(candidates[i]["tokens"] for i in three),
            }
            differ |= len({candidates[i]["response"] for i in three}) > 1
        found = [a["rewards"]["concise"] for a in answers(best_of_n, point.name)]
        assert point.scores["concise"].mean == pytest.approx(sum(found) / 6)
    assert differ


def test_the_pool_is_sampled_once(read: Callable[..., Experiment], capsys: pytest.CaptureFixture[str]) -> None:
    experiment = read("best_of_n", into="once")
    run_sweep(experiment)
    evaluate_sweep(experiment)
    said = capsys.readouterr().err
    assert said.count("answers of best_of_n: 12 of 12") == 1  # 3 prompts, n = 4
    assert "answers of kind" not in said


def test_the_rewards_that_are_trained_on_choose(best_of_n: Ran, read: Callable[..., Experiment]) -> None:
    """Another scorer of `evaluation.rewards` measures what they have chosen."""
    other = "evaluation.rewards={kind: modpo.rewards.text:word_count}"
    settings = ["best_of_n={n: 3}", "evaluation.samples_per_prompt=2", other]
    measured = run(read("best_of_n", *settings, into="measured"))
    for point in best_of_n.front.points:
        chosen = answers(measured, point.name)
        assert [a["response"] for a in chosen] == [a["response"] for a in answers(best_of_n, point.name)]
        assert [a["rewards"]["kind"] for a in chosen] == [len(a["response"].split()) for a in chosen]


def test_choices_of_best_of_n_cannot_be_loaded(best_of_n: Ran, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    front = load_front(best_of_n.front.folder)
    for load in (lambda: front.at(BETWEEN), lambda: front.bake(BETWEEN, tmp_path / "baked")):
        with pytest.raises(InputError, match=r"holds choices among the reference's answers .* no policies to load"):
            load()
    assert main(["chat", str(front.folder)]) == 2
    assert capsys.readouterr().err.count("no policies to load") == 1


def test_best_of_n_needs_rewards_that_score_new_answers(read: Callable[..., Experiment]) -> None:
    for changed in ("objectives.concise.reward={column: length}", "objectives.kind.reward=null"):
        with pytest.raises(InputError, match=r"cannot score new answers, as `method: best_of_n` needs; fix: give it a"):
            read("best_of_n", changed)


# --- the continuous policy alone ------------------------------------------------------------------------------


def test_the_continuous_policy_is_trained_alone_and_kept_by_the_sweep(
    file: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into a folder of its own or into its place: the same bytes, from which the sweep bakes its points."""
    own, place = folder / "policy", ["--set", f"output_dir={folder / 'continuous'}"]
    assert main(["train", str(file), "--continuous", "--output", str(own)]) == 0
    assert main(["train", str(file), "--continuous", *place]) == 0
    policy = folder / "continuous" / "continuous"
    for name in BETWEEN:
        weights = f"{name}/adapter_model.safetensors"
        assert (policy / weights).read_bytes() == (own / weights).read_bytes()
    assert not (folder / "continuous" / "points").exists()
    capsys.readouterr()
    assert main(["sweep", str(file), *place, "--set", "sweep.mode=continuous", "--no-evaluate"]) == 0
    assert "continuous: finished before, kept" in capsys.readouterr().err
    points = finished_points(read_experiment(file, [place[1], "sweep.mode=continuous"]))
    parts = [read_adapter(own / name).updates for name in BETWEEN]
    scales = spread_out(BETWEEN, (read_manifest(own) or {})["spread"]).values()
    for module, (a, b) in read_adapter(next(points).folder).updates.items():
        mixed = sum(scale * part[module][1] @ part[module][0] for scale, part in zip(scales, parts, strict=True))
        torch.testing.assert_close(b @ a, mixed)


# --- dpo ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dpo(read: Callable[..., Experiment]) -> Ran:
    return run(read("dpo"))


def test_dpo_is_a_policy_for_each_objective(dpo: Ran, soups: Ran) -> None:
    """Whatever the file's vectors; since every prompt has pairs of both, the policies are the ends of the soup."""
    assert [p.weights for p in dpo.front.points] == [{"kind": 1.0, "concise": 0.0}, {"kind": 0.0, "concise": 1.0}]
    for name, point in zip(BETWEEN, finished_points(dpo.experiment), strict=True):
        ours, end = (
            load_file(folder / "adapter_model.safetensors")
            for folder in (point.folder, soups.experiment.output_dir / "ends" / name)
        )
        for tensor, found in ours.items():
            torch.testing.assert_close(found, end[tensor], rtol=1e-3, atol=1e-5)
    before = kept(dpo.experiment)
    assert run_sweep(dpo.experiment) == []
    assert kept(dpo.experiment) == before


def test_dpo_needs_no_vectors_and_has_none_between(
    read: Callable[..., Experiment], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = read("dpo", "sweep={method: dpo}")
    assert bare.sweep.weights == [{"kind": 1.0, "concise": 0.0}, {"kind": 0.0, "concise": 1.0}]
    written = file.with_name("written.yaml")
    written.write_text(to_yaml(bare))
    assert read_experiment(written) == bare
    assert main(["train", str(file), "--set", "sweep.method=dpo", "--weights", "kind=0.5,concise=0.5"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --weights:weights: lies between objectives, and `method: dpo` takes one; fix: give one objective all"
    )


def test_dpo_needs_pairs_of_each_objective(read: Callable[..., Experiment]) -> None:
    with pytest.raises(InputError, match=r"objectives\.concise: has no pairs, which `method: dpo` trains on"):
        read("dpo", "objectives.concise.pairs=null")
