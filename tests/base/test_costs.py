"""What things took: counted against the model's own calls, kept with what is cached, added up in the ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from modpo.base.costs import NOTHING, Cost, Meter, count
from modpo.base.files import read_manifest, read_sealed, write_sealed
from modpo.base.memory import CLEAR_REFS
from modpo.cli import main
from modpo.data.loading import load_groups
from modpo.data.tokens import stop_ids
from modpo.evaluation.sweep_costs import sweep_ledger
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from modpo.forward.generate import generate
from modpo.forward.logprobs import logps_by_group
from modpo.front.ledger import FILE, Entry, Ledger, read_ledger, took, write_ledger
from modpo.methods.sweep import finished_points
from modpo.models.reference import ReferenceModel
from modpo.scored.scorer import experiment_scorer
from tests.kit import SAMPLE, SAMPLED_DATA, WORDS, prompt_rows, write_experiment, write_rows

# --- a cost -------------------------------------------------------------------------------------------------


def test_costs_add_up() -> None:
    """Everything is summed, but memory and devices, which are there at a time. 90 s on two devices are 0.05 hours."""
    first = Cost(60.0, 10, 1, 2, 3, peak_memory_bytes=500, devices=2)
    second = Cost(30.0, 5, 4, 4, 4, peak_memory_bytes=700)
    assert first + second == Cost(90.0, 15, 5, 6, 7, 700, 2)
    assert (first + second).device_hours == pytest.approx(0.05)
    assert sum([first, second], NOTHING) == first + second
    assert first.share(2) == Cost(30.0, 5, 0, 1, 1, 500, 2)


def test_a_cost_is_read_from_older_manifests() -> None:
    assert Cost.of({"seconds": 2.5, "tokens": 7, "loss": 0.3}) == Cost(2.5, 7)
    assert Cost.of({"seconds": 2.5}) == Cost(2.5, 0)
    cost = Cost(1.25, 2, 3, 4, 5, 6, 7)
    assert Cost.of(json.loads(json.dumps(cost.written()))) == cost


# --- a meter ------------------------------------------------------------------------------------------------


def test_meters_in_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 15.0, 100.0])
    monkeypatch.setattr("modpo.base.costs.monotonic", lambda: next(clock))
    with Meter() as outer:
        count(tokens=1, forward_passes=1)
        with Meter() as inner:
            count(tokens_generated=5, forward_passes=2, backward_passes=1)
    count(tokens=1000)  # nobody is looking
    assert (inner.cost.seconds, outer.cost.seconds) == (5.0, 100.0)
    assert timeless(inner.cost) == Cost(0.0, 0, 5, 2, 1)
    assert timeless(outer.cost) == Cost(0.0, 1, 5, 3, 1)


def test_a_meter_is_closed_by_an_error() -> None:
    meter = Meter()
    with pytest.raises(ZeroDivisionError), meter:
        count(tokens=2, forward_passes=1 // 0)
    count(tokens=2)
    assert meter.cost.tokens == 0


def test_devices_are_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with Meter() as meter:
        pass
    assert meter.cost.devices == 4


@pytest.mark.skipif(
    not CLEAR_REFS.exists() or torch.cuda.is_available(), reason="the peak of a process cannot be reset"
)
def test_peak_memory_is_that_of_the_stage() -> None:
    """200 MB that come and go are seen by the meter they lie in and by those around it, not by the next."""
    size = 200_000_000
    with Meter() as outer:
        with Meter() as greedy:
            np.ones(size, dtype=np.uint8).sum()
        with Meter() as modest:
            pass
    assert greedy.cost.peak_memory_bytes > modest.cost.peak_memory_bytes + 0.9 * size
    assert outer.cost.peak_memory_bytes >= greedy.cost.peak_memory_bytes


def timeless(cost: Cost) -> Cost:
    return replace(cost, seconds=0.0, peak_memory_bytes=0)


# --- what counts itself -------------------------------------------------------------------------------------


@contextmanager
def calls(model: nn.Module) -> Iterator[list[bool]]:
    """Of every call of the model, whether it kept its gradient."""
    seen: list[bool] = []
    handle = model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def reference(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    from modpo.experiment.sections import ModelSection

    return ReferenceModel(ModelSection(str(tiny_model), dtype="float32"), tmp_path_factory.mktemp("cache"))


def test_generation_counts_tokens_and_steps(reference: ReferenceModel) -> None:
    ends = stop_ids(reference.tokenizer, conversational=False)
    with Meter() as meter, calls(reference.model) as seen:
        answers = generate(
            reference.model, reference.tokenizer, [[5, 6], [7], [8]], ends=ends, max_new_tokens=6, batch_size=2
        )
    assert timeless(meter.cost) == Cost(0.0, 0, sum(map(len, answers)), len(seen), 0)


@pytest.mark.parametrize("packing", [True, False])
def test_reading_counts_passes(reference: ReferenceModel, packing: bool) -> None:
    prompts, responses = [[5, 6, 7], [8, 9]], [[[10, 11], [12]], [[13, 14]]]
    list(logps_by_group(reference.model, prompts, responses, packing=packing))  # the first tries how the model packs
    with Meter() as meter, calls(reference.model) as seen:
        list(logps_by_group(reference.model, prompts, responses, packing=packing))
    assert timeless(meter.cost) == Cost(0.0, 0, 0, len(seen), 0)
    assert len(seen) == (1 if packing else 2)


# --- a whole sweep ------------------------------------------------------------------------------------------


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
    found = read_ledger(house / "run")
    assert found is not None
    return found


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
    assert again is not None
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
    manifest = read_manifest(tmp_path / "run" / "continuous")
    assert found is not None
    assert manifest is not None
    own = {e.stage: e.cost for e in found.entries if e.method == "continuous" and e.counts}
    assert own == {"train continuous": Cost.of(manifest["cost"])}
    points = list(finished_points(replace(resolved(house), output_dir=tmp_path / "run")))
    assert [point.cost.tokens for point in points] == [manifest["cost"]["tokens"] // 2] * 2


# --- on disk ------------------------------------------------------------------------------------------------


def test_a_ledger_is_read_back(tmp_path: Path) -> None:
    """1 h on 2 devices and half an hour on one, for 2 models: 1.25 device-hours each."""
    entries = [
        Entry("sft", Cost(3600.0, 5, devices=2)),
        Entry("train a", Cost(1800.0, 10, 7), "modpo"),
        Entry("measure a", Cost(9999.0, 0), "modpo", counts=False),
    ]
    ledger = Ledger("modpo", 2, entries, ["tokens"])
    write_ledger(ledger, tmp_path)
    assert read_ledger(tmp_path) == ledger
    assert json.loads((tmp_path / FILE).read_text())["device_hours_per_model"] == 1.25
    assert took(ledger) == "1 h 30 min, 15 tokens trained on, 7 tokens generated, 1.25 device-hours a model"


def test_a_changed_ledger_is_none(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) is None
    write_ledger(Ledger("modpo", 1, [Entry("train a", Cost(1.0, 10))]), tmp_path)
    path = tmp_path / FILE
    path.write_text(path.read_text().replace('"tokens": 10', '"tokens": 11'))
    assert read_ledger(tmp_path) is None


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
