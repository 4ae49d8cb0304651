"""An artifact under a key: made once, kept, verified, refused where it is of something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from modpo.base.artifact import Artifact, cost_of
from modpo.base.errors import InputError, IntegrityError
from modpo.base.files import MANIFEST


def made(artifact: Artifact, text: str = "content", **about: object) -> Artifact:
    with artifact.making(**about) as new:
        (new.folder / "file").write_text(text)
    return artifact


def test_it_is_made_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = Artifact(tmp_path / "a", {"seed": 0}, "a policy")
    assert artifact.there() is None
    manifest = made(artifact, weights={"x": 1.0}).there()
    assert manifest is not None
    assert (manifest["key"], manifest["weights"]) == (artifact.key, {"x": 1.0})
    cost = cost_of(manifest)
    assert cost is not None
    assert cost.seconds >= 0
    assert "a policy: finished before, kept" in capsys.readouterr().err


def test_the_key_is_of_its_parts_whatever_their_order(tmp_path: Path) -> None:
    assert Artifact(tmp_path, {"a": 1, "b": 2}).key == Artifact(tmp_path / "x", {"b": 2, "a": 1}).key
    assert Artifact(tmp_path, {"a": 1}).key != Artifact(tmp_path, {"a": 2}).key


def test_one_of_other_parts_is_refused_or_made_again(tmp_path: Path) -> None:
    made(Artifact(tmp_path / "a", {"seed": 0}))
    with pytest.raises(IntegrityError, match="was made from other data or settings; fix: delete it"):
        Artifact(tmp_path / "a", {"seed": 1}).there()
    other = Artifact(tmp_path / "a", {"seed": 1}, replaceable=True)
    assert other.there() is None
    assert made(other, "new").there() is not None
    assert (tmp_path / "a" / "file").read_text() == "new"


def test_what_was_changed_is_refused(tmp_path: Path) -> None:
    artifact = made(Artifact(tmp_path / "a", {}))
    (tmp_path / "a" / "file").write_text("edited")
    with pytest.raises(IntegrityError, match="file: is missing or was changed"):
        artifact.there()


def test_without_its_manifest_it_is_a_loss_or_somebody_s_work(tmp_path: Path) -> None:
    artifact = made(Artifact(tmp_path / "a", {}))
    (tmp_path / "a" / MANIFEST).unlink()
    assert artifact.there() is None
    with pytest.raises(InputError, match="holds something that modpo did not make"):
        Artifact(tmp_path / "a", {}, guarded=True).there()


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        made(Artifact(tmp_path / "a", {}), text=7)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_the_block_says_is_in_the_manifest(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "a", {})
    with artifact.making() as new:
        new.about.update(cost={"seconds": 7.0, "tokens": 3}, loss=0.5)
    manifest = artifact.there() or {}
    assert manifest["loss"] == 0.5
    assert (cost := cost_of(manifest)) is not None
    assert (cost.seconds, cost.tokens) == (7.0, 3)
