"""What a whole pipeline cost, stage by stage: each is there once, and says what it took."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from modpo.base.costs import Cost
from modpo.base.files import read_sealed, write_sealed
from modpo.cli import main
from modpo.data.loading import load_groups
from modpo.evaluation.sweep_costs import sweep_ledger
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from modpo.front.ledger import FILE, Ledger, read_ledger
from modpo.methods.sweep import finished_points
from modpo.scored.of_experiment import experiment_scorer
from tests.kit import SAMPLE, SAMPLED_DATA, WORDS, manifest_of, prompt_rows, write_experiment, write_rows


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder in which a pipeline has run: sft, answers sampled, a reward trained, a sweep."""
    folder = tmp_path_factory.mktemp("house")
    write_rows(folder / "prompts.jsonl", prompt_rows())
    labelled = [{"prompt": f"{i}? ", "chosen": f"a {word}", "rejected": f"{word}!!"} for i, word in enumerate(WORDS)]
    write_rows(folder / "labels.jsonl", labelled)
    told = [{"prompt": f"d{i}? ", "completion": f"{word}."} for i, word in enumerate(WORDS[:4])]
    write_rows(folder / "told.jsonl", told)
    count_letters = '{function: modpo.rewards.text:match_count, kwargs: {pattern: "[a-z]"}}'
    trained = "{kind: implicit, path: FOLDER/labels.jsonl, eval_prompts: 2, arguments: {max_steps: 2}}"
    write_experiment(
        folder,
        tiny_model,
        sft="""
  path: FOLDER/told.jsonl
  arguments: {max_steps: 2, per_device_train_batch_size: 2, gradient_accumulation_steps: 2}""",
        sample=SAMPLE,
        data=SAMPLED_DATA,
        objectives=f"""
  dense: {{pairs: bradley_terry, reward: {count_letters}, calibration: standardise}}
  same: {{reward: {count_letters}, maximize: false, scale: 0.5}}
  liked: {{reward: {{train: {trained}}}}}""",
        training="{per_device_train_batch_size: 3, learning_rate: 1e-2, save_steps: 1}",
        sweep="{weights: [{dense: 0.5, same: 0.25, liked: 0.25}, {dense: 0.25, same: 0.5, liked: 0.25}]}",
        evaluation="{max_new_tokens: 8, bootstrap: 20}",
    )
    assert main(["sweep", str(folder / "experiment.yaml")]) == 0
    return folder


@pytest.fixture(scope="module")
def ledger(house: Path) -> Ledger:
    return read_ledger(house / "run")


def costs(ledger: Ledger) -> dict[str, Cost]:
    return {entry.stage: entry.cost for entry in ledger.entries}


def test_every_stage_is_there_once(ledger: Ledger) -> None:
    """Two objectives with one reward share its column; a policy and what measuring it took stand beside each other."""
    points = ["dense0.5-same0.25-liked0.25", "dense0.25-same0.5-liked0.25"]
    assert [entry.stage for entry in ledger.entries] == [
        *("sft", "sample", "train reward liked"),
        *("tokens", "reference log-probs", "pairs dense", "reward dense", "reward liked", "calibration dense"),
        *(f"train {point}" for point in points),
        *(f"measure {name}" for name in ("reference", *points)),
    ]
    assert [entry.stage for entry in ledger.entries if not entry.counts] == [
        f"measure {name}" for name in ("reference", *points)
    ]
    assert {entry.stage for entry in ledger.entries if entry.method == "modpo" and entry.counts} == {
        f"train {point}" for point in points
    }
    assert ledger.unknown == []


def test_stages_say_what_they_took(house: Path, ledger: Ledger) -> None:
    """5 prompts are trained on, 3 at a time: 2 steps, each one pass. sft reads 2 batches in each of its 2 steps."""
    taken = costs(ledger)
    assert (taken["sft"].forward_passes, taken["sft"].backward_passes) == (4, 4)
    for point in finished_points(read_experiment(house / "experiment.yaml")):
        assert taken[f"train {point.name}"] == point.cost
        assert (point.cost.forward_passes, point.cost.backward_passes) == (2, 2)
        assert point.cost.tokens > 0
    rows = [json.loads(line) for line in (house / "rows.jsonl").read_text().splitlines()]
    letters = sum(len(response) for row in rows for response in row["responses"])
    assert taken["sample"].tokens_generated >= letters  # one token a byte
    assert taken["reference log-probs"].forward_passes >= 1
    assert taken["reference log-probs"].backward_passes == taken["reference log-probs"].tokens == 0
    assert taken["train reward liked"].backward_passes == 2
    assert taken["reward liked"].forward_passes >= 2  # the policy's and the reference's
    assert taken["reward dense"].forward_passes == 0
    assert all(cost.seconds > 0 and cost.peak_memory_bytes > 0 for cost in taken.values())


def test_the_total_is_of_what_counts(house: Path, ledger: Ledger) -> None:
    counted = [entry.cost for entry in ledger.entries if entry.counts]
    assert ledger.total.seconds == pytest.approx(sum(cost.seconds for cost in counted))
    assert ledger.total.tokens == sum(cost.tokens for cost in counted)
    written = json.loads((house / "run" / FILE).read_text())
    assert written["total"]["device_hours"] == pytest.approx(ledger.total.seconds / 3600)
    assert written["device_hours_per_model"] == pytest.approx(ledger.total.seconds / 3600 / 2)
    assert sum(e["device_hours"] for e in written["entries"] if e["counts"]) == pytest.approx(
        written["total"]["device_hours"]
    )
    page = (house / "run" / "report.html").read_text()
    assert "<h2>Costs</h2>" in page
    assert '<th scope="row">reference log-probs</th>' in page


def test_what_is_in_the_cache_counts_as_when_it_was_made(house: Path, ledger: Ledger, tmp_path: Path) -> None:
    """The same sweep in another folder with the trained stages copied: all shared costs are the same numbers."""
    for name in ("sft", "rewards"):
        shutil.copytree(house / "run" / name, tmp_path / "run" / name)
    assert main(["sweep", str(house / "experiment.yaml"), "--set", f"output_dir={tmp_path / 'run'}"]) == 0
    again = read_ledger(tmp_path / "run")
    shared = {entry.stage for entry in ledger.entries if entry.method is None}
    assert len(shared) == 9
    assert {s: c for s, c in costs(again).items() if s in shared} == {
        s: c for s, c in costs(ledger).items() if s in shared
    }
    assert costs(again)["measure reference"] == costs(ledger)["measure reference"]


def resolved(house: Path) -> Experiment:
    from modpo.pipeline.stages import prepare

    return prepare(read_experiment(house / "experiment.yaml"))


def test_a_method_pays_for_what_it_needs(house: Path, ledger: Ledger) -> None:
    """One that samples its own answers needs no scored data, only what its rewards are calibrated on."""
    experiment = resolved(house)
    scored = experiment_scorer(experiment).score(load_groups(experiment)[0])
    morlhf = replace(experiment, sweep=replace(experiment.sweep, method="morlhf"))
    stages = set(costs(sweep_ledger(morlhf, scored, [], {})))
    trained = {"sft", "train reward liked"}
    assert stages == trained | {"sample", "pairs dense", "reward dense", "reward liked", "calibration dense"}
    objectives = {name: replace(o, calibration="none") for name, o in experiment.objectives.items()}
    bare = replace(morlhf, objectives=objectives)
    assert set(costs(sweep_ledger(bare, replace(scored, fitting={}), [], {}))) == trained


def test_points_of_one_training_pay_for_it_once(house: Path, tmp_path: Path) -> None:
    for name in ("sft", "rewards"):
        shutil.copytree(house / "run" / name, tmp_path / "run" / name)
    given = [f"output_dir={tmp_path / 'run'}", "sweep.mode=continuous"]
    assert main(["sweep", str(house / "experiment.yaml"), *(x for g in given for x in ("--set", g))]) == 0
    found = read_ledger(tmp_path / "run")
    manifest = manifest_of(tmp_path / "run" / "continuous")
    own = {e.stage: e.cost for e in found.entries if e.method == "continuous" and e.counts}
    assert own == {"train continuous": Cost.of(manifest["cost"])}
    points = list(finished_points(replace(resolved(house), output_dir=tmp_path / "run")))
    assert [point.cost.tokens for point in points] == [manifest["cost"]["tokens"] // 2] * 2


def test_what_an_older_version_made_is_named_unknown(house: Path) -> None:
    """A column without costs, as they were written before: its stage is named, and the others count."""
    shutil.copytree(house / "cache", house / "older")
    older = replace(resolved(house), cache_dir=house / "older")
    scored = experiment_scorer(older).score(load_groups(older)[0])
    manifest = scored.reference.folder / "manifest.json"
    written = read_sealed(manifest)
    for shard in written["shards"].values():
        del shard["cost"]
    write_sealed(manifest, written)
    found = sweep_ledger(older, scored, [], {"reference": None})
    assert found.unknown == ["reference log-probs", "measure reference"]
    assert "tokens" in costs(found)
