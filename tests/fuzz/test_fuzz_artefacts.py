"""What modpo wrote and reads again, damaged: fronts, manifests of folders, manifests of columns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modpo.base.costs import Cost
from modpo.base.files import MANIFEST, new_folder, read_manifest, sha256_json, unsealed
from modpo.front.pareto import Hypervolume, Score
from modpo.front.schema import Estimate, Front, FrontObjective, Point, read_front, write_front
from modpo.scored.columns import Column, column
from tests.fuzz.cases import fuzz, survives
from tests.fuzz.mutations import altered, mutated

SCORES = {name: Score(0.5, 0.25, 0.75) for name in ("kind", "concise")}


def point(name: str, **more: Any) -> Point:
    return Point(name, SCORES, Estimate(0.1, 0.01), Estimate(12.0, 1.0), Cost(3.5, 120), dominated=False, **more)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a measured front."""
    folder = tmp_path_factory.mktemp("front")
    trained = [
        point(
            f"kind{w}", weights={"kind": w, "concise": 1 - w}, adapter=f"points/kind{w}", hypervolume_contribution=0.1
        )
        for w in (0.25, 0.5)
    ]
    objectives = [FrontObjective("kind"), FrontObjective("concise", maximize=False, unit="words")]
    hypervolume = Hypervolume(0.5, 0.4, 0.6, {"kind": 0.0, "concise": 9.0})
    write_front(Front(folder, objectives, point("reference"), trained, hypervolume, {"seed": 0}))
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it is published."""
    folder = tmp_path_factory.mktemp("published") / "point"
    with new_folder(folder, {"key": "abc", "weights": {"kind": 1.0}, "cost": {"seconds": 1.5}}) as temporary:
        (temporary / "adapter.bin").write_bytes(b"weights")
        (temporary / "inner").mkdir()
        (temporary / "inner" / "log.json").write_text("[]")
    return folder


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Column:
    """A column of two shards."""
    made = column(tmp_path_factory.mktemp("cache"), "reward", {"reward": {"column": "words"}}, 3, shard_groups=2)
    made.fill(lambda groups: iter({"scores": [float(i)]} for i in groups))
    return made


def sealed(value: Any) -> bytes:
    """JSON as `publish.write_sealed` writes it, if it is an object: damage that the seal does not show."""
    if isinstance(value, dict):
        plain = json.loads(json.dumps({key: value[key] for key in value if key != "sha256"}))
        value = {**plain, "sha256": sha256_json(plain)}
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="surrogatepass")


def damaged(data: st.DataObject, good: bytes) -> bytes:
    """A file with other bytes, or with other values and a seal that fits."""
    if data.draw(st.booleans()):
        return data.draw(mutated(good))
    value = data.draw(altered(json.loads(good)))
    try:
        return sealed(value) if data.draw(st.booleans()) else json.dumps(value).encode()
    except ValueError:  # half a character has no bytes to be hashed
        return json.dumps(value).encode()


def tried(path: Path, content: bytes, read: Callable[[], Any]) -> Any:
    """What is read while a file holds something else."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        return survives(read)
    finally:
        path.write_bytes(before)


@fuzz
@given(data=st.data())
def test_fronts(data: st.DataObject, front: Path) -> None:
    path = front / "front.json"
    by_hand = json.dumps(unsealed(path.read_text("utf-8"))).encode()  # behind the seal all is looked at
    whole = data.draw(st.sampled_from([by_hand, path.read_bytes()]))
    tried(path, damaged(data, whole), lambda: read_front(front))


@fuzz
@given(data=st.data())
def test_manifests_of_folders(data: st.DataObject, published: Path) -> None:
    path = published / MANIFEST
    good = path.read_bytes()
    content = damaged(data, good)
    manifest = tried(path, content, lambda: read_manifest(published))
    assert manifest is None or set(manifest["files"]) == {"adapter.bin", "inner/log.json"}


@fuzz
@given(data=st.data())
def test_manifests_of_columns(data: st.DataObject, filled: Column) -> None:
    path = filled.folder / MANIFEST
    content = damaged(data, path.read_bytes())
    tried(path, content, filled.missing_shards)
    opened = tried(path, content, filled.open)
    assert opened is None or opened["scores"][:] == [[0.0], [1.0], [2.0]]


@fuzz
@given(data=st.data())
def test_damaged_shards(data: st.DataObject, filled: Column) -> None:
    path = filled.shard_path(0)
    good = path.read_bytes()
    content = data.draw(mutated(good))
    opened = tried(path, content, filled.open)
    assert (opened is not None) == (content == good)


def test_the_undamaged_is_read(front: Path, published: Path, filled: Column, tmp_path: Path) -> None:
    assert len(read_front(front).points) == 2
    assert read_manifest(Path(shutil.copytree(published, tmp_path / "copy"))) is not None
    assert filled.open()["scores"][:] == [[0.0], [1.0], [2.0]]
