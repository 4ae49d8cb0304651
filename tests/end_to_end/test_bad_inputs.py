"""The catalogue of bad inputs, each through the command line on a small real experiment.

What is refused leaves with the right exit code and one line a problem, before any weight is read and before anything is
written. What is only odd is said, and the command goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from difflib import unified_diff
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from modpo.experiment.file import read_experiment
from modpo.scored.of_experiment import score_experiment
from tests.end_to_end.bad_inputs import (
    CATALOGUE,
    GOLDEN,
    HELD_OUT,
    Change,
    House,
    Outcome,
    both,
    bytes_of,
    chats,
    edit,
    golden,
    house_in,
    in_model,
    no_weights_read,
    outcome,
    scorer,
    vectors,
    with_merges,
    without_pad_token,
    yaml,
)
from tests.kit import edit_json, errors


@pytest.fixture
def house(tmp_path: Path, tiny_model: Path) -> Iterator[House]:
    with house_in(tmp_path, tiny_model) as made:
        yield made


@pytest.fixture
def no_weights() -> Iterator[None]:
    with no_weights_read():
        yield


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcome_of(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """What a row of the catalogue comes to; it is run once."""
    return cache(lambda row: outcome(row, tmp_path_factory.mktemp("bad"), tiny_model))


@pytest.mark.parametrize("row", CATALOGUE)
def test_bad_input_is_one_line_a_problem_and_changes_nothing(
    row: str, outcome_of: Callable[[str], Outcome], no_weights: None
) -> None:
    found = outcome_of(row)
    assert found.code == CATALOGUE[row].code, found.standard_error
    assert found.places == list(CATALOGUE[row].places), found.standard_error
    assert CATALOGUE[row].mentions in "".join(found.lines)
    assert all("; fix: " in line or line.startswith("and ") for line in found.lines)
    assert "Traceback" not in found.standard_error
    assert found.standard_output == ""
    assert not found.changed


def test_the_wording_of_every_line(outcome_of: Callable[[str], Outcome], no_weights: None) -> None:
    """Where a line is meant to be worded otherwise, `python -m tests.end_to_end.bad_inputs` writes the file anew."""
    found = golden({row: outcome_of(row) for row in CATALOGUE})
    before, after = GOLDEN.read_text("utf-8").splitlines(), found.splitlines()
    if difference := list(unified_diff(before, after, GOLDEN.name, "said", n=2, lineterm="")):
        pytest.fail("\n".join(difference), pytrace=False)


# What of the file's own mistakes only a library can tell.
ASKS_A_LIBRARY = {
    "config: an argument that nobody knows",
    "config: a value that only the trainer knows",
    "config: adapters that fit nowhere",
    "config: a dtype that the device lacks",
}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets"}
FILE_ALONE = f"""
import sys, tempfile
from pathlib import Path
from tests.end_to_end.bad_inputs import CATALOGUE, outcome

for row in sys.argv[1:]:
    with tempfile.TemporaryDirectory() as folder:
        outcome(row, Path(folder), Path("model"))
    if loaded := {HEAVY} & sys.modules.keys():
        sys.exit(f"{{row}}: loads {{', '.join(loaded)}}")
"""


def test_what_the_file_alone_tells_is_found_before_a_heavy_library_is_loaded() -> None:
    rows = [row for row in CATALOGUE if row.startswith(("config: ", "weights: ")) and row not in ASKS_A_LIBRARY]
    assert CATALOGUE.keys() > ASKS_A_LIBRARY
    subprocess.run([sys.executable, "-c", FILE_ALONE, *rows], check=True, timeout=120, cwd=Path(__file__).parents[2])


def test_debug_shows_the_traceback_before_the_line(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    edit(3, chosen=None)(house)
    house.write()
    assert house.run("score", "--debug") == 2
    *_, last = lines = capsys.readouterr().err.splitlines()
    assert last.startswith(house.fill("error: ROWS:3:chosen: is null; fix: "))
    assert "Traceback (most recent call last):" in lines


@pytest.mark.parametrize("command", ["score", "inspect", "train"])
def test_other_commands_refuse_the_same(command: str, house: House, no_weights: None, capsys) -> None:
    edit(3, chosen="<eos>")(house)
    house.write()
    before = house.contents()
    options = ["--weights", "kind=0.5,concise=0.5"] if command == "train" else []
    assert house.run(command, *options) == 2
    lines = errors(capsys.readouterr().err)
    assert lines == [line for line in lines if line.startswith(house.fill("error: ROWS:3:responses[0]: "))] != []
    assert house.contents() == before


def test_a_folder_that_may_not_be_written(house: House, no_weights: None, monkeypatch, capsys) -> None:
    house.write()
    if os.geteuid() == 0:  # nothing is read-only to root
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    else:
        house.folder.chmod(0o500)
    try:
        assert house.run("sweep") == 3
    finally:
        house.folder.chmod(0o700)
    assert capsys.readouterr().err.startswith(house.fill("error: FOLDER: may not be written; fix: "))
    assert not (house.folder / "out").exists()


# --- what is accepted, and said -----------------------------------------------------------------------------

SWEEP = ("sweep", "--no-evaluate")
SCORE = ("score",)


def pad_with_the_end(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", pad_token="<eos>")


def duplicates(house: House) -> None:
    house.rows += house.rows[:2]


ACCEPTED: dict[str, tuple[Change, tuple[str, ...], str]] = {
    "data: byte order mark": (bytes_of(lambda good: b"\xef\xbb\xbf" + good), SCORE, ""),
    "data: CRLF": (bytes_of(lambda good: good.replace(b"\n", b"\r\n")), SCORE, ""),
    "data: empty lines": (bytes_of(lambda good: b"\n\n" + good.replace(b"\n", b"\n \n")), SCORE, ""),
    "data: chosen equals rejected": (
        edit(3, chosen="bad rain"),
        SCORE,
        "warning: ROWS: 1 pairs dropped: chosen equals rejected",
    ),
    "data: duplicate rows": (duplicates, SCORE, "warning: ROWS: 2 rows repeat an earlier row: their pairs count again"),
    "data: prompt longer than max_length": (
        edit(3, prompt="long " * 40),
        SCORE,
        "warning: ROWS: 1 prompts lost their beginning and 0 responses their end; fix: ",
    ),
    "data: response longer than max_length": (
        edit(3, chosen="long " * 40),
        SCORE,
        "warning: ROWS: 0 prompts lost their beginning and 1 responses their end; fix: ",
    ),
    "data: tokens merged across the prompt boundary": (
        in_model(with_merges),
        SCORE,
        "warning: ROWS: 6 responses share a token with the end of their prompt",
    ),
    "data: special tokens in user text": (
        both(
            chats,
            lambda house: [
                row["prompt"][0].update(content="a<eos>b" + row["prompt"][0]["content"]) for row in house.rows
            ],
        ),
        SCORE,
        "warning: ROWS: 4 texts spell out a special token, which is read as one",
    ),
    "data: train and held-out rows overlap": (
        edit(3, **HELD_OUT[0]),
        SWEEP,
        "warning: ROWS: 1 prompts are held out as well: they are not trained on",
    ),
    "data: fewer rows than a batch": (
        yaml("batch_size: 2", "batch_size: 7"),
        SWEEP,
        "warning: ROWS: 6 prompts to train on are fewer than one batch of 7",
    ),
    "config: 1e-5, which YAML reads as text": (yaml("1e-2", "1e-5"), SCORE, ""),
    "weights: normalize": (yaml("{grid: 1}", "{weights: [{kind: 3, concise: 1}], normalize: true}"), SCORE, ""),
    "weights: the same vector twice": (
        vectors("[{kind: 0.5, concise: 0.5}, {concise: 0.5, kind: 0.5}]"),
        SWEEP,
        "point 1 of 1: kind 0.5, concise 0.5",
    ),
    "weights: primary objective at 0": (
        both(vectors("[{kind: 0, concise: 1}]"), yaml("{per_device", "{objective: kind, per_device")),
        SWEEP,
        "kind0-concise1: trained",
    ),
    "rewards: constant margin": (
        scorer("return [1.0] * len(completions)"),
        SWEEP,
        "warning: ROWS:1: reward is 1 for each of the first 8 responses: a constant reward moves nothing",
    ),
    "models: no pad token": (in_model(without_pad_token), SCORE, ""),
    "models: pad equals eos": (in_model(pad_with_the_end), SWEEP, "trained in"),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("row", ACCEPTED)
def test_what_is_only_odd_is_said_once_and_goes_on(row: str, house: House, capsys) -> None:
    change, command, words = ACCEPTED[row]
    change(house)
    house.write()
    code = house.run(*command)
    said = capsys.readouterr().err.splitlines()
    assert code == 0, said
    assert any(house.fill(words) in line for line in said), said
    assert not any(line.startswith("error: ") for line in said)
    if command == SWEEP:
        (point,) = (house.folder / "out" / "points").glob("*/adapter_model.safetensors")
        assert point.stat().st_size > 0


def test_rewards_in_another_order_are_those_of_the_same_texts(house: House) -> None:
    """Scores lie beside the texts that they are of, whatever the order of the rows was when they were computed."""

    def scores() -> dict[str, float]:
        house.write()
        experiment = read_experiment(house.folder / "experiment.yaml")
        column = score_experiment(experiment).rewards["concise"].open()
        texts = [text for row in house.rows for text in (row["chosen"], row["rejected"])]
        return dict(zip(texts, [score for row in column for score in row["scores"]], strict=True))

    before = scores()
    house.rows.reverse()
    assert scores() == before == {text: float(len(text.split())) for text in before}


# --- what only a finished run can meet ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a sweep that was run."""
    house = House(tmp_path_factory.mktemp("finished"), tiny_model, relative=True)
    house.write()
    with chdir(house.folder):
        assert house.run(*SWEEP) == 0
    return house.folder


@pytest.fixture
def rerun(finished: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """A copy of the finished sweep."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return House(tmp_path, tiny_model, relative=True)


def points(house: House) -> dict[str, bytes]:
    return {str(p.relative_to(house.folder)): p.read_bytes() for p in house.folder.glob("out/points/*/*")}


def test_the_same_command_again_keeps_what_is_there(rerun: House, capsys) -> None:
    before = points(rerun)
    assert rerun.run(*SWEEP) == 0
    assert "kind0.5-concise0.5: finished before, kept" in capsys.readouterr().err
    assert points(rerun) == before != {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (yaml("1e-2", "2e-2"), "the folder holds another experiment (training"),
        (yaml("r: 2", "r: 4"), "the folder holds another experiment (lora"),
        (yaml("maximize: false", "maximize: true"), "the folder holds another experiment (objectives"),
        (edit(3, chosen="a better rain"), "kind0.5-concise0.5: was made from other data"),
    ],
    ids=["rate", "adapters", "objectives", "rows"],
)
def test_a_changed_experiment_is_not_resumed(change: Change, words: str, rerun: House, capsys) -> None:
    before = points(rerun)
    change(rerun)
    rerun.write()
    assert rerun.run(*SWEEP) == 4
    (error,) = errors(capsys.readouterr().err)
    assert words in error
    assert points(rerun) == before != {}


def test_other_vectors_join_those_that_are_there(rerun: House) -> None:
    before = points(rerun)
    vectors("[{kind: 0.25, concise: 0.75}]")(rerun)
    rerun.write()
    assert rerun.run(*SWEEP) == 0
    assert before.items() < points(rerun).items()


def test_a_cache_of_a_newer_schema(rerun: House, no_weights: None, capsys) -> None:
    for path in (rerun.folder / "cache").rglob("manifest.json"):
        newer(path)
    before = rerun.contents()
    assert rerun.run("score") == 4
    (error,) = errors(capsys.readouterr().err)
    assert "was written by a newer modpo; fix: update modpo" in error
    assert rerun.contents() == before


def newer(path: Path) -> None:
    """A manifest as a later version would write it."""
    from modpo.base.files import SEAL, write_sealed

    manifest = json.loads(path.read_text())
    if "schema" in manifest:
        manifest.pop(SEAL, None)
        write_sealed(path, {**manifest, "schema": 99})


# --- memory -------------------------------------------------------------------------------------------------

LOWER = (
    "training.per_device_train_batch_size",
    "training.max_packed_tokens",
    "data.max_length",
    "training.gradient_checkpointing",
)


@pytest.fixture
def hungry(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first point that is trained asks for more memory than there is; the batch sizes of all steps."""
    import torch

    from modpo.training.trainer import MODPOTrainer

    compute_loss, sizes = MODPOTrainer.compute_loss, []

    def asking(self: MODPOTrainer, *args: Any, **kwargs: Any) -> Any:
        sizes.append(self.args.per_device_train_batch_size)
        if self.args.vector["kind"] > 0.5:
            torch.empty(1 << 50)
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(MODPOTrainer, "compute_loss", asking)
    return sizes


def test_training_without_memory_says_what_to_lower(house: House, hungry: list[int], capsys) -> None:
    house.write()
    assert house.run("train", "--weights", "kind=0.75,concise=0.25") == 3
    (error,) = errors(capsys.readouterr().err)
    assert error.startswith("error: out of memory: ")
    assert all(name in error for name in LOWER)
    assert not list(house.folder.glob("out/points/*/adapter*"))


def test_a_sweep_without_memory_records_the_point_and_goes_on(house: House, hungry: list[int], capsys) -> None:
    yaml("{grid: 1}", "{grid: 2}")(house)
    house.write()
    assert house.run(*SWEEP) == 5
    record = json.loads((house.folder / "out" / "failed" / "kind0.75-concise0.25.json").read_text())
    assert "memory" in record["reason"]
    assert [p.parent.name for p in house.folder.glob("out/points/*/adapter_config.json")] == ["kind0.25-concise0.75"]
    assert set(hungry) == {2}  # nobody lowered it


def test_a_reward_without_memory_is_not_taken_for_a_bad_row(house: House, capsys) -> None:
    scorer("return [float(len(c)) for c in completions] if len(completions) < 9 else bytearray(1 << 60)")(house)
    house.write()
    assert house.run("score") == 3
    (error,) = errors(capsys.readouterr().err)
    assert error.startswith("error: out of memory: ")
