"""Checkpoints on disk: the newest that verifies, of the same run; older ones go when a new one is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modpo.base.errors import IntegrityError
from modpo.base.files import read_manifest
from modpo.training.checkpoints import WEIGHTS, Checkpoints, differences, load_trained, trained_tensors

RUN = {"weights": {"kind": 0.5}, "seed": 0, "data": {"tokens": "a" * 64}, "lora": {"r": 4}}


def publish(folder: Path, step: int, run: dict[str, Any] = RUN, keep: int = 2) -> None:
    with Checkpoints(folder, run, every=1, keep=keep).new(step) as new:
        for name in ("weights", "optimizer"):
            (new / name).write_text(f"{name} of step {step}, and some more")


def newest(folder: Path, run: dict[str, Any] = RUN) -> Path | None:
    return Checkpoints(folder, run, every=1, keep=2).newest()


def steps(folder: Path) -> list[int]:
    """Of the checkpoints in a folder, all of which verify; nothing else is there."""
    assert all(read_manifest(path) is not None for path in folder.iterdir())
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.iterdir())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_stay_and_those_ahead_go(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") is None
    for step, stay in ((2, [2]), (9, [2, 9]), (10, [9, 10])):
        publish(tmp_path, step)
        assert steps(tmp_path) == stay
        assert newest(tmp_path) == tmp_path / f"checkpoint-{step}"
    flip(tmp_path / "checkpoint-10" / "weights")
    assert newest(tmp_path) == tmp_path / "checkpoint-9"
    publish(tmp_path, 9)
    assert steps(tmp_path) == [9]  # 10 was passed over by the run that is now at step 9
    publish(tmp_path, 11, keep=1)
    assert steps(tmp_path) == [11]


def test_leftovers_and_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    publish(tmp_path, 3)
    (tmp_path / ".tmp-0123abcd-checkpoint-4").mkdir()
    (tmp_path / "checkpoint-5").write_text("a file")
    (tmp_path / "checkpoint-6-copy").mkdir()
    assert newest(tmp_path) == tmp_path / "checkpoint-3"
    assert not (tmp_path / ".tmp-0123abcd-checkpoint-4").exists()


def _delete_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit of the weights flipped": lambda folder: flip(folder / "weights"),
    "a bit of the optimizer flipped": lambda folder: flip(folder / "optimizer"),
    "a file deleted": lambda folder: (folder / "optimizer").unlink(),
    "a file cut off": lambda folder: os.truncate(folder / "weights", 4),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest edited": lambda folder: flip(folder / "manifest.json"),
    "empty": _delete_all,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_one_that_does_not_verify_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    publish(tmp_path, 9)
    publish(tmp_path, 10)
    damage(tmp_path / "checkpoint-10")
    assert newest(tmp_path) == tmp_path / "checkpoint-9"
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"warning: {tmp_path / 'checkpoint-10'}")
    assert said.endswith(": this checkpoint is passed over")


CHANGES = [
    ({"weights": {"kind": 0.4}}, "weights.kind (0.5, now 0.4)"),
    ({"seed": 1}, "seed (0, now 1)"),
    ({"data": {"tokens": "b" * 64}}, "data.tokens"),
    ({"lora": None}, "lora ({'r': 4}, now None)"),
    ({"lora": None, "seed": 2}, "lora ({'r': 4}, now None), seed (0, now 2)"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=[words for _, words in CHANGES])
def test_one_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    assert newest(tmp_path) == tmp_path / "checkpoint-2"
    with pytest.raises(IntegrityError) as refused:
        newest(tmp_path, {**RUN, **change})
    assert f"which differs in {words}; fix: " in str(refused.value)
    assert steps(tmp_path) == [1, 2]


def test_other_versions_and_numbers_of_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1" if name == "trl" else "9.9")
    with pytest.raises(IntegrityError, match=r"versions\.torch .*versions\.trl \('.+', now '0\.1'\), world_size \(1, "):
        newest(tmp_path)


def test_differences_are_named() -> None:
    assert differences({"a": {"b": 1, "c": [1]}, "d": 0}, {"a": {"b": 1, "c": [1]}, "d": 0}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}}) == ["a.b (1, now 2)", "a.c (None, now 3)"]
    assert differences({"a": "x" * 64}, {"a": "y" * 64}) == ["a"]


def test_weights_are_those_that_are_trained_and_no_others(tmp_path: Path) -> None:
    model, path = nn.Linear(2, 1), tmp_path / WEIGHTS
    good = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    save_file(good, path)
    load_trained(model, path)
    assert model.weight.tolist() == [[1, 1]]
    assert model.bias.tolist() == [1]
    model.bias.requires_grad_(False)
    assert trained_tensors(model).keys() == {"weight"}
    with pytest.raises(IntegrityError, match="is of another model \\(bias differs"):
        load_trained(model, path)


@pytest.mark.parametrize(
    "odd",
    [{"bias": None}, {"more": torch.ones(1)}, {"bias": torch.ones(2)}, {"bias": torch.ones(1).double()}],
    ids=["missing", "too much", "another shape", "another number format"],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, odd: dict[str, Any]) -> None:
    model, path = nn.Linear(2, 1), tmp_path / WEIGHTS
    before = model.weight.detach().clone()
    saved = {"weight": torch.zeros(1, 2), "bias": torch.zeros(1), **odd}
    save_file({name: tensor for name, tensor in saved.items() if tensor is not None}, path)
    with pytest.raises(IntegrityError, match="is of another model"):
        load_trained(model, path)
    assert torch.equal(model.weight, before)
