"""Two methods with two seeds on a tiny model, from prompts to the table; the numbers against plain loops."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from modpo.base.costs import Cost
from modpo.base.errors import InputError, NumericError
from modpo.cli import main
from modpo.comparison.result import compare
from modpo.evaluation.evaluate import SCORES
from modpo.experiment.file import read_experiment
from modpo.experiment.methods import METHODS, Method
from modpo.front.ledger import Entry, Ledger, read_ledger, write_ledger
from modpo.front.pareto import Hypervolume, Score
from modpo.front.schema import Estimate, Front, FrontObjective, Point
from modpo.methods.modpo import maker as modpo_maker
from modpo.methods.run import Maker, Run
from modpo.policies.steered_front import load_front
from tests.kit import SAMPLE, SAMPLED_DATA, prompt_rows, write_experiment, write_rows


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a comparison that has run: `experiment.yaml`, `run/`, `cache/`."""
    folder = tmp_path_factory.mktemp("house")
    write_comparison(folder, tiny_model)
    assert main(["sweep", str(folder / "experiment.yaml"), "--set", "comparison.seeds=[0, 3]"]) == 0
    return folder


def write_comparison(folder: Path, model: Path) -> Path:
    write_rows(folder / "prompts.jsonl", prompt_rows())
    return write_experiment(
        folder,
        model,
        sample=SAMPLE,
        data=SAMPLED_DATA,
        objectives="""
  long: {pairs: bradley_terry, reward: modpo.rewards.text:character_count, scale: 0.5, unit: characters}
  dense: {reward: {function: modpo.rewards.text:match_count, kwargs: {pattern: "[a-z]"}}, maximize: false}""",
        comparison="{methods: [modpo, continuous], seeds: [0]}",
        evaluation="{max_new_tokens: 8, bootstrap: 40, samples_per_prompt: 2}",
    )


def read(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "run" / "comparison.json").read_text())
    return result


def fronts(folder: Path, method: str) -> list[Front]:
    return [load_front(path) for path in sorted((folder / "run" / method).iterdir())]


def above(points: list[tuple[float, float]], corner: tuple[float, float]) -> float:
    """Area above a corner, both axes maximised: columns between neighbouring points, counted one by one."""
    kept = sorted({point for point in points if point[0] > corner[0] and point[1] > corner[1]})
    area, left = 0.0, corner[0]
    for i, (x, _) in enumerate(kept):
        area += (x - left) * (max(y for _, y in kept[i:]) - corner[1])
        left = x
    return area


# --- a whole comparison -------------------------------------------------------------------------------------


def test_every_method_and_seed_has_a_front_of_its_own(house: Path) -> None:
    run = house / "run"
    assert {p.relative_to(run).as_posix() for p in run.glob("*/seed*/front.json")} == {
        f"{method}/seed{seed}/front.json" for method in ("modpo", "continuous") for seed in (0, 3)
    }
    assert {p.name for p in run.iterdir() if p.is_file() and not p.name.startswith(".")} == {
        "experiment.yaml",
        *(f"comparison.{suffix}" for suffix in ("json", "csv", "png", "md")),
    }
    adapters = [
        (run / method / f"seed{seed}" / "points" / "long0.75-dense0.25" / "adapter_model.safetensors").read_bytes()
        for method in ("modpo", "continuous")
        for seed in (0, 3)
    ]
    assert len(set(adapters)) == 4


def test_hypervolume_is_that_of_the_fronts(house: Path) -> None:
    """Down to the reference point of `front.json`, and down to the reference policy's own scores."""
    result = read(house)
    for method in ("modpo", "continuous"):
        of_seeds = fronts(house, method)
        found = result["methods"][method]
        volumes = [front.hypervolume.mean for front in of_seeds]
        gains = []
        for front in of_seeds:
            means = [(p.scores["long"].mean, -p.scores["dense"].mean) for p in (front.reference, *front.points)]
            gains.append(above(means[1:], means[0]))
            corner = front.hypervolume.reference_point
            assert above(means[1:], (corner["long"], -corner["dense"])) == pytest.approx(front.hypervolume.mean)
        assert list(found["hypervolume_by_seed"].values()) == pytest.approx(volumes, abs=1e-9)
        for key, values in {"hypervolume": volumes, "hypervolume_above_reference": gains}.items():
            assert found[key]["mean"] == pytest.approx(np.mean(values), abs=1e-9)
            assert found[key]["ci_low"] <= found[key]["ci_high"]


def test_points_are_means_over_the_seeds(house: Path) -> None:
    result = read(house)
    for method in ("modpo", "continuous"):
        both = fronts(house, method)
        assert result["methods"][method]["seeds"] == 2
        for i, point in enumerate(result["methods"][method]["points"]):
            assert point["weights"] == both[0].points[i].weights
            for name, score in point["scores"].items():
                assert score["mean"] == pytest.approx(np.mean([f.points[i].scores[name].mean for f in both]))
                assert score["ci_low"] <= score["mean"] <= score["ci_high"]
            assert point["kl"]["mean"] == pytest.approx(np.mean([f.points[i].kl.mean for f in both]))
    assert result["reference_scores"] == pytest.approx({n: s.mean for n, s in both[0].reference.scores.items()})
    assert result["reference_point"] == both[0].hypervolume.reference_point


def test_costs_are_those_of_the_ledgers(house: Path) -> None:
    result = read(house)
    for method, trainings in (("modpo", 2), ("continuous", 1)):
        ledgers = [read_ledger(front.folder) for front in fronts(house, method)]
        counted = [[entry for entry in ledger.entries if entry.counts] for ledger in ledgers if ledger]
        assert [sum(entry.method is not None for entry in entries) for entries in counted] == [trainings] * 2
        shared = [[entry for entry in entries if entry.method is None] for entries in counted]
        assert shared[0] == shared[1]
        assert {"sample", "reference log-probs", "reward dense"} <= {entry.stage for entry in shared[0]}
        seconds = [sum(entry.cost.seconds for entry in entries) for entries in counted]
        found = result["methods"][method]
        assert found["cost_seconds"] == pytest.approx(np.mean(seconds))
        assert found["device_hours_per_model"] == pytest.approx(np.mean(seconds) / 3600 / 2)
        assert found["tokens_generated"] >= 5 * 3  # the sampled data: of 5 prompts 3 answers each
        assert found["cost_tokens"] > 0


def test_what_the_sweeps_share_is_made_once(house: Path) -> None:
    """Data of one seed; one measuring of the reference, whose answers are the same for all."""
    written = json.loads((house / "rows.jsonl.manifest.json").read_text())
    assert len(written["sha256"]) == 1
    assert len(list((house / "cache" / "evaluation").iterdir())) == 1
    assert len(list((house / "cache" / "scored").glob("reference-*"))) == 2  # of the data, and of what is audited
    answers = set()
    for path in (house / "run").glob("*/seed*/responses.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        answers.add(tuple(line["response"] for line in lines if line["policy"] == "reference"))
        assert not (path.parent / "evaluation" / "reference").exists()
    assert len(answers) == 1


def test_table_csv_and_picture(house: Path) -> None:
    result = read(house)
    with (house / "run" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], float(row["weight:long"])) for row in rows] == [
        (method, weight) for method in ("modpo", "continuous") for weight in (0.75, 0.25)
    ]
    first = result["methods"]["modpo"]["points"][0]
    assert float(rows[0]["dense_ci_high"]) == first["scores"]["dense"]["ci_high"]
    assert float(rows[0]["kl_mean"]) == first["kl"]["mean"]
    table = (house / "run" / "comparison.md").read_text()
    assert f"`modpo sweep {house / 'experiment.yaml'} --set 'comparison.seeds=[0, 3]'`" in table
    assert result["command"] in table
    assert result["commit"] in table
    assert [line.split(" | ")[0] for line in table.splitlines()[2:4]] == ["| modpo", "| continuous"]
    assert (house / "run" / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def copy(house: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command that goes on with a copy of what the comparison left."""
    shutil.copytree(house / "run", tmp_path / "run")

    def command(*overrides: str) -> list[str]:
        given = [f"output_dir={tmp_path / 'run'}", *overrides]
        return ["sweep", str(house / "experiment.yaml"), *(part for o in given for part in ("--set", o))]

    return command


def test_the_same_again_makes_nothing_new(
    house: Path, tmp_path: Path, copy: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    def made() -> dict[str, int]:
        folders = [*tmp_path.glob("run/*/seed*/points"), *tmp_path.glob("run/*/seed*/evaluation"), house / "cache"]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
        return {str(path): path.stat().st_mtime_ns for path in files}

    before = made()
    assert main(copy("comparison.methods=[continuous]", "comparison.seeds=[3]")) == 0
    assert made() == before
    there, again = (read(folder)["methods"]["continuous"] for folder in (house, tmp_path))
    assert again["hypervolume_by_seed"] == {"3": there["hypervolume_by_seed"]["3"]}
    shown = capsys.readouterr().out
    assert "continuous" in shown
    assert "1 of 1" in shown


# --- what does not come to its end --------------------------------------------------------------------------


class Trouble(ModuleType):
    """A method that is MODPO until a vector at which it ends."""

    error: BaseException

    def maker(self, run: Run) -> Maker:
        make = modpo_maker(run)

        def trouble(weights: dict[str, float], folder: Path) -> None:
            if weights["long"] < 0.5:
                raise self.error
            make(weights, folder)

        return trouble


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Trouble:
    """A new method: a module, and its entry in the table."""
    module = Trouble("modpo.methods.trouble")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(METHODS, "trouble", Method("trouble", module="trouble", margins=True))
    return module


def test_what_fails_is_recorded_and_the_others_go_on(
    tmp_path: Path, copy: Callable[..., list[str]], trouble: Trouble, capsys: pytest.CaptureFixture[str]
) -> None:
    trouble.error = NumericError("step 3: the loss is not finite; fix: lower learning_rate")
    assert main(copy("comparison={methods: [trouble, modpo], seeds: [3]}")) == 5
    assert "1 of 2 sweeps failed: trouble with seed 3" in capsys.readouterr().err
    result = read(tmp_path)
    assert {method: found["seeds"] for method, found in result["methods"].items()} == {"modpo": 1}
    assert [(failed["method"], failed["seed"]) for failed in result["failed"]] == [("trouble", 3)]
    assert "1 of 2 points failed" in result["failed"][0]["reason"]
    assert "trouble with seed 3 failed" in (tmp_path / "run" / "comparison.md").read_text()


def test_a_stopped_run_shows_what_there_is(tmp_path: Path, copy: Callable[..., list[str]], trouble: Trouble) -> None:
    """Its own methods and seeds, those that were finished before among them."""
    trouble.error = KeyboardInterrupt()
    assert main(copy("comparison={methods: [modpo, trouble, continuous], seeds: [0, 1]}")) == 130
    assert {method: found["seeds"] for method, found in read(tmp_path)["methods"].items()} == {
        "modpo": 1,
        "continuous": 1,
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("comparison.methods=[modpo, ppo]", "comparison.methods: is ['modpo', 'ppo']; fix: use some of: modpo"),
        ("comparison.methods=[]", "comparison.methods: is empty"),
        ("comparison.seeds=[1, 1]", "comparison.seeds: has one twice"),
        ("comparison.seeds=[-1]", "comparison.seeds: is [-1]"),
        ("lora=null", "lora: is null"),
    ],
)
def test_what_cannot_be_compared_is_said_first(tmp_path: Path, tiny_model: Path, override: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_experiment(write_comparison(tmp_path, tiny_model), [override])
    assert said in str(caught.value)


def test_a_comparison_is_measured(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(write_comparison(tmp_path, tiny_model)), "--no-evaluate"]) == 2
    assert "--no-evaluate: goes not with `comparison`" in capsys.readouterr().err
    assert main(["evaluate", str(write_comparison(tmp_path, tiny_model))]) == 2
    assert "comparison: is not measured by itself; fix: run `modpo sweep`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- the numbers --------------------------------------------------------------------------------------------

N = 6
SIGNS = np.array([1.0, -1.0, 1.0])
OBJECTIVES = [FrontObjective("up"), FrontObjective("down", maximize=False), FrontObjective("wide")]


def measured_front(folder: Path, samples: np.ndarray) -> Front:
    """A front whose policies have these scores, (1 + P, N, K), and no KL; a second of training for each."""
    folder.mkdir(parents=True)
    names = [objective.name for objective in OBJECTIVES]
    policies = ["reference", *(f"p{i}" for i in range(1, len(samples)))]
    with (folder / SCORES).open("w") as file:
        for policy, scores in zip(policies, samples, strict=True):
            line = {"policy": policy, "scores": dict(zip(names, scores.T.tolist(), strict=True)), "kl": [0.0] * N}
            file.write(json.dumps(line) + "\n")
    write_ledger(Ledger("any", len(samples) - 1, [Entry("train", Cost(4.0, 10))]), folder)
    points = [
        Point(
            policy, {n: Score(0, 0, 0) for n in names}, Estimate(0, 0), Estimate(1, 0), Cost(1.0, 10), dominated=False
        )
        for policy in policies
    ]
    return Front(folder, OBJECTIVES, points[0], points[1:], Hypervolume(0, 0, 0, corner(samples)))


def corner(samples: np.ndarray) -> dict[str, float]:
    """One standard deviation below the reference policy, the first row."""
    worst = samples[0].mean(axis=0) - SIGNS * samples[0].std(axis=0)
    return {objective.name: float(x) for objective, x in zip(OBJECTIVES, worst, strict=True)}


@pytest.fixture
def samples() -> dict[str, list[np.ndarray]]:
    """Of two methods with three seeds each, the same reference."""
    rng = np.random.default_rng(5)
    reference = rng.normal(size=(1, N, 3))
    better = np.array([1.5, -1.5, 1.5])

    def seed(shift: float) -> np.ndarray:
        return np.concatenate([reference, reference + shift * better + rng.normal(size=(4, N, 3)) / 4])

    return {"modpo": [seed(1.0) for _ in range(3)], "other": [seed(0.7) for _ in range(3)]}


def volume(means: np.ndarray, corner: np.ndarray) -> float:
    """Of all rows but the first, the reference, by inclusion and exclusion over all sets of points: no library."""
    signed = (means[1:] - corner) * SIGNS
    total = 0.0
    for chosen in range(1, 2 ** len(signed)):
        members = signed[[i for i in range(len(signed)) if chosen >> i & 1]]
        box = np.prod(np.maximum(members.min(axis=0), 0.0))
        total += box if len(members) % 2 else -box
    return total


def test_hypervolume_intervals_and_ratios(tmp_path: Path, samples: dict[str, list[np.ndarray]]) -> None:
    """Drawn again in plain loops: the same prompts for all, the same seeds for both of a ratio."""
    found = compare(
        {m: {s: measured_front(tmp_path / m / str(s), x) for s, x in enumerate(of)} for m, of in samples.items()},
        resamples=60,
        confidence=0.9,
    )
    rows = np.random.default_rng(0)
    rows_B = [rows.integers(N, size=N) for _ in range(60)]
    seeds_B = np.random.default_rng(1).integers(3, size=(60, 3))
    worst = np.array(list(corner(samples["modpo"][0]).values()))
    assert list(found.reference_point.values()) == worst.tolist()
    drawn: dict[str, list[float]] = {method: [] for method in samples}
    gains: dict[str, list[float]] = {method: [] for method in samples}
    for prompts, seeds in zip(rows_B, seeds_B, strict=True):
        for method, of in samples.items():
            means = [of[s][:, prompts].mean(axis=1) for s in seeds]
            drawn[method].append(float(np.mean([volume(m, worst) for m in means])))
            gains[method].append(float(np.mean([volume(m, m[0]) for m in means])))
    for method, of in samples.items():
        result, means = found.methods[method], [x.mean(axis=1) for x in of]
        for score, drawn_B, whole in (
            (result.hypervolume, drawn[method], [volume(m, worst) for m in means]),
            (result.hypervolume_above_reference, gains[method], [volume(m, m[0]) for m in means]),
        ):
            assert score.mean == pytest.approx(np.mean(whole))
            assert [score.ci_low, score.ci_high] == pytest.approx(np.quantile(drawn_B, [0.05, 0.95]))
        assert result.cost_seconds == 4
    ratio = found.hypervolume_ratio["other"]
    assert ratio.mean == pytest.approx(
        found.methods["other"].hypervolume.mean / found.methods["modpo"].hypervolume.mean
    )
    ratios = np.array(drawn["other"]) / np.array(drawn["modpo"])
    assert [ratio.ci_low, ratio.ci_high] == pytest.approx(np.quantile(ratios, [0.05, 0.95]))
    assert 0 < ratio.ci_low < ratio.ci_high < 1


def test_a_ratio_is_over_the_seeds_that_both_have(tmp_path: Path, samples: dict[str, list[np.ndarray]]) -> None:
    """The baseline with itself, one seed less: 1 whatever is drawn."""
    three = {s: measured_front(tmp_path / str(s), x) for s, x in enumerate(samples["modpo"])}
    found = compare({"modpo": three, "twin": {2: three[2], 0: three[0]}}, resamples=30, confidence=0.95)
    assert found.hypervolume_ratio["twin"] == Score(*[pytest.approx(1.0)] * 3)
    assert found.methods["twin"].seeds == 2


def test_no_ratio_to_nothing(tmp_path: Path, samples: dict[str, list[np.ndarray]]) -> None:
    """A baseline that is nowhere above the reference point has no volume to divide by; nor has one not there."""
    reference = samples["modpo"][0][:1]
    none = measured_front(tmp_path / "none", np.concatenate([reference, reference - 9 * SIGNS, reference - 9 * SIGNS]))
    some = measured_front(tmp_path / "some", samples["other"][0][:3])
    assert compare({"modpo": {0: none}, "other": {0: some}}, resamples=20, confidence=0.95).hypervolume_ratio == {}
    assert compare({"other": {0: some}}, resamples=20, confidence=0.95).hypervolume_ratio == {}
