"""A column of the scored cache: computed once, shard by shard; what is there verifies."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modpo.base import files as publish
from modpo.base.errors import IntegrityError
from modpo.base.files import read_sealed, write_sealed
from modpo.scored.columns import MOST_SHARDS, SCHEMA, Column, Row, column

ROWS, SHARD = 10, 3  # shards of 3, 3, 3 and 1


def reward_column(cache: Path, name: str = "a", rows: int = ROWS, shard_groups: int = SHARD) -> Column:
    return column(cache, "reward", {"reward": name}, rows, shard_groups)


class Counted:
    """Computes i -> [i, i + 0.5], and remembers what it was asked for."""

    def __init__(self, fails_at: int | None = None, error: BaseException | None = None) -> None:
        self.computed: list[int] = []
        self.fails_at, self.error = fails_at, error or RuntimeError("the scorer broke")

    def __call__(self, groups: range) -> Iterator[Row]:
        for i in groups:
            if i == self.fails_at:
                raise self.error
            self.computed.append(i)
            yield {"scores": [i, i + 0.5]}


def filled(cache: Path, **arguments: Any) -> Column:
    made = reward_column(cache, **arguments)
    made.fill(Counted())
    return made


# --- filling ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "shards"), [(1, [1]), (3, [3]), (4, [3, 1]), (10, [3, 3, 3, 1])])
def test_filled_column_holds_every_row_in_order(tmp_path, rows, shards):
    made = reward_column(tmp_path, rows=rows)
    assert made.missing_shards() == list(range(len(shards)))
    assert not made.complete
    compute = Counted()
    made.fill(compute)
    assert compute.computed == list(range(rows))
    assert made.open()["scores"][:] == [[i, i + 0.5] for i in range(rows)]
    assert [shard["rows"] for shard in made.finished_shards().values()] == shards
    assert made.complete
    assert made.missing_shards() == []


def test_a_shard_that_is_written_in_batches_holds_every_row(tmp_path):
    made = filled(tmp_path, rows=1000, shard_groups=700)
    assert made.table().column("scores").to_pylist() == [[i, i + 0.5] for i in range(1000)]
    assert [shard["rows"] for shard in made.finished_shards().values()] == [700, 300]


@pytest.mark.parametrize(("rows", "groups"), [(1, 256), (16_384, 256), (16_385, 512), (250_000, 4096)])
def test_a_column_has_at_most_so_many_shards(tmp_path, rows, groups):
    made = column(tmp_path, "reward", {}, rows)
    assert made.shard_groups == groups
    assert made.shard_count <= MOST_SHARDS


def test_filled_column_is_not_computed_again(tmp_path):
    filled(tmp_path)
    compute = Counted()
    reward_column(tmp_path).fill(compute)
    assert compute.computed == []


@pytest.mark.parametrize("error", [RuntimeError("the scorer broke"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_what_was_finished_before_an_error_is_kept(tmp_path, error):
    """The scorer fails on group 7, in the third shard: groups 0 to 5 stand in the finished ones."""
    made = reward_column(tmp_path)
    with pytest.raises(type(error)):
        made.fill(Counted(fails_at=7, error=error))
    assert made.missing_shards() == [2, 3]
    assert not [path.name for path in made.folder.iterdir() if path.name.startswith(".tmp-")]
    kept = {path.name: (path.stat().st_ino, path.read_bytes()) for path in made.folder.glob("*.arrow")}
    assert sorted(kept) == ["00000.arrow", "00001.arrow"]

    resumed = Counted()
    reward_column(tmp_path).fill(resumed)
    assert resumed.computed == [6, 7, 8, 9]
    for name, (inode, content) in kept.items():
        path = made.folder / name
        assert (path.stat().st_ino, path.read_bytes()) == (inode, content)


def test_a_resumed_column_equals_an_undisturbed_one_bit_for_bit(tmp_path):
    with pytest.raises(RuntimeError):
        reward_column(tmp_path / "disturbed").fill(Counted(fails_at=4))
    disturbed, undisturbed = filled(tmp_path / "disturbed"), filled(tmp_path / "undisturbed")
    files = [
        {p.name: p.read_bytes() for p in made.folder.iterdir() if p.suffix == ".arrow"}
        for made in (disturbed, undisturbed)
    ]
    assert files[0] == files[1]
    assert set(files[0]) == {f"{shard:05d}.arrow" for shard in range(4)}
    manifests = [read_sealed(made.folder / "manifest.json") for made in (disturbed, undisturbed)]
    for shard in (shard for manifest in manifests for shard in manifest["shards"].values()):
        del shard["cost"]  # of seconds and memory
    assert manifests[0] == manifests[1]


def test_what_a_killed_process_leaves_behind_is_no_shard(tmp_path):
    """A temporary file, and a whole shard that did not reach the manifest: both are as if they were not there."""
    done = filled(tmp_path / "done")
    made = reward_column(tmp_path)
    made.folder.mkdir(parents=True)
    (made.folder / ".tmp-0badcafe-00000.arrow").write_bytes(b"half")
    made.shard_path(0).write_bytes(done.shard_path(1).read_bytes())
    assert made.missing_shards() == [0, 1, 2, 3]
    made.fill(Counted())
    assert made.open()["scores"][:] == done.open()["scores"][:]
    assert not list(made.folder.glob(".tmp-*"))


FILL = """
import sys
from pathlib import Path
from modpo.scored.columns import column

def compute(groups):
    for i in groups:
        print(i, flush=True)
        if not sys.stdin.readline():  # one line a row: nobody goes on alone
            sys.exit(1)
        yield {"scores": [i, i + 0.5]}

column(Path(sys.argv[1]), "reward", {"reward": "a"}, 10, 3).fill(compute)
"""


@pytest.mark.parametrize("ending", ["finishes", "is killed"])
def test_of_two_that_fill_one_waits_and_every_row_is_computed_once(tmp_path, monkeypatch, capsys, ending):
    """The other process holds the lock in its second shard, and goes on only once this one has said that it waits."""
    monkeypatch.setattr(publish, "SECONDS_BETWEEN_LINES", 0.05)
    made, mine = reward_column(tmp_path), Counted()
    command = [sys.executable, "-c", FILL, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        theirs = []
        for i in range(5):  # the first shard and a row; it stands before the second
            theirs.append(int(other.stdout.readline()))
            if i < 4:
                other.stdin.write("\n")
                other.stdin.flush()
        waiter = threading.Thread(target=made.fill, args=(mine,))
        waiter.start()
        said = ""
        while "1 of 4 shards" not in said and waiter.is_alive():
            said += capsys.readouterr().err
        assert mine.computed == []
        if ending == "finishes":
            other.stdin.write("\n" * ROWS)
            other.stdin.flush()
            theirs += [int(line) for line in other.stdout]
        else:
            other.kill()
        waiter.join(timeout=60)
        assert not waiter.is_alive()
    assert "waiting for another process, which is at work here, 1 of 4 shards" in said
    assert made.open()["scores"][:] == [[i, i + 0.5] for i in range(ROWS)]
    if ending == "finishes":
        assert (theirs, mine.computed) == (list(range(ROWS)), [])
    else:
        assert (theirs, mine.computed) == ([0, 1, 2, 3, 4], list(range(3, ROWS)))  # its first shard was finished


@pytest.mark.parametrize("count", [2, 4])
def test_more_or_fewer_rows_than_groups_are_refused(tmp_path, count):
    made = reward_column(tmp_path)
    with pytest.raises(ValueError, match=f"{count} rows were computed for 3 prompt groups"):
        made.fill(lambda groups: iter([{"scores": [0.0]}] * count))
    assert made.finished_shards() == {}


# --- integrity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", range(4))
def test_one_flipped_bit_in_a_shard_is_found(tmp_path, shard):
    made = filled(tmp_path)
    path = made.shard_path(shard)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        IntegrityError, match=rf"{path.name}: is missing or was changed; fix: delete .* and score again"
    ):
        made.open()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-8])])
def test_a_lost_or_truncated_shard_is_found(tmp_path, damage):
    made = filled(tmp_path)
    damage(made.shard_path(1))
    with pytest.raises(IntegrityError, match=r"00001.arrow: is missing or was changed"):
        made.open()


def test_an_unfinished_column_does_not_open(tmp_path):
    made = reward_column(tmp_path)
    with pytest.raises(RuntimeError):
        made.fill(Counted(fails_at=7))
    with pytest.raises(IntegrityError, match=r"2 of 4 shards; fix: score again"):
        made.open()


def edit_manifest(made: Column, change: Callable[[dict[str, Any]], Any]) -> None:
    """As somebody would who knows how a manifest is sealed."""
    path = made.folder / "manifest.json"
    manifest = read_sealed(path)
    change(manifest)
    write_sealed(path, manifest)


@pytest.mark.parametrize("method", ["open", "missing_shards", "content_hash"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=SCHEMA + 1), "was written by a newer modpo; fix: update modpo, or delete"),
        (lambda m: m["identity"].update(reward="b"), "describes another column; fix: delete"),
        (lambda m: m["identity"].pop("rows"), "describes another column; fix: delete"),
        (lambda m: m.update(schema="1"), "cannot be read"),
        (lambda m: m.pop("schema"), "cannot be read"),
        (lambda m: m.pop("shards"), "cannot be read"),
        (lambda m: m.update(shards=3), "cannot be read"),
    ],
)
def test_a_manifest_of_something_else_is_refused(tmp_path, change, message, method):
    made = filled(tmp_path)
    edit_manifest(made, change)
    with pytest.raises(IntegrityError, match=message):
        getattr(made, method)()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["shards"].update({"00000.arrow": {}}),
        lambda m: m["shards"].update({"00000.arrow": "sha"}),
        lambda m: m["shards"].update({"00009.arrow": m["shards"].pop("00000.arrow")}),
        lambda m: m["shards"].update({"../stray": m["shards"].pop("00000.arrow")}),
    ],
)
def test_a_manifest_with_other_shards_is_refused(tmp_path, change):
    made = filled(tmp_path)
    edit_manifest(made, change)
    with pytest.raises(IntegrityError):
        made.open()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_broken_manifest_is_refused_and_nothing_is_computed(tmp_path, content):
    made = filled(tmp_path)
    (made.folder / "manifest.json").write_bytes(content)
    compute = Counted()
    with pytest.raises(IntegrityError, match=r"manifest.json: cannot be read .*; fix: delete"):
        made.fill(compute)
    assert compute.computed == []


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    """200 in the shards, and every one of the manifest."""
    made, rng = filled(tmp_path), random.Random(0)
    shards = sorted(made.folder.glob("*.arrow"))
    manifest = made.folder / "manifest.json"
    places = [(manifest, bit) for bit in range(8 * manifest.stat().st_size)]
    places += [(path, rng.randrange(8 * path.stat().st_size)) for path in rng.choices(shards, k=200)]
    for path, bit in places:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(IntegrityError):
            made.open()
        path.write_bytes(whole)
    assert len(made.open()) == ROWS


def test_a_manifest_that_was_edited_by_hand_is_refused(tmp_path):
    made = filled(tmp_path)
    path = made.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"].popitem()
    path.write_text(json.dumps(manifest, indent=2) + "\n")
    with pytest.raises(IntegrityError, match=r"manifest.json: cannot be read \(it was changed\); fix: delete"):
        made.missing_shards()


@pytest.mark.parametrize("name", ["00001.arrow", "manifest.json"])
def test_a_symlink_in_a_column_is_refused_even_to_equal_content(tmp_path, name):
    made = filled(tmp_path)
    path = made.folder / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match=rf"{name}: (is missing or was changed|cannot be read)"):
        made.open()


def test_nothing_is_written_behind_a_symlink(tmp_path):
    made = reward_column(tmp_path)
    made.folder.parent.mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    made.folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(IntegrityError, match=r"is a symlink; fix: delete it, and score again"):
        made.fill(Counted())
    assert list((tmp_path / "theirs").iterdir()) == []


# --- keys ---------------------------------------------------------------------------------------------------


def test_a_column_is_found_by_its_identity_alone(tmp_path):
    a = column(tmp_path, "reward", {"texts": "t", "reward": {"x": 1, "y": (2, 3)}}, 10)
    same = column(tmp_path, "reward", {"reward": {"y": [2, 3], "x": 1}, "texts": "t"}, 10)
    assert (a.folder, a.key) == (same.folder, same.key)
    a.fill(lambda groups: ({"scores": [0.0]} for _ in groups))
    assert same.complete


def test_whatever_changes_the_numbers_makes_another_column(tmp_path):
    folders = {
        made.folder
        for made in (
            reward_column(tmp_path),
            reward_column(tmp_path, name="b"),
            reward_column(tmp_path, rows=ROWS + 1),
            reward_column(tmp_path, shard_groups=SHARD + 1),
            column(tmp_path, "reference", {"reward": "a"}, ROWS, SHARD),
        )
    }
    assert len(folders) == 5


def test_the_content_hash_is_of_the_numbers(tmp_path):
    """The same under another identity and in another folder; another when one number is another."""
    a, b = filled(tmp_path), filled(tmp_path / "elsewhere", name="b")
    assert a.content_hash() == b.content_hash()
    other = reward_column(tmp_path, name="c")
    other.fill(lambda groups: ({"scores": [i, i + (0.5 if i != 9 else 0.25)]} for i in groups))
    assert other.content_hash() != a.content_hash()


# --- kinds --------------------------------------------------------------------------------------------------

KINDS: dict[str, Row] = {
    "tokens": {
        "prompt_ids": [1, 2],
        "responses_ids": [[3], [4, 151_000]],
        "prompt_truncated": True,
        "responses_truncated": 1,
        "merged_boundary": 0,
        "special_in_text": 2,
        "first_equal": [0, 1],
        "prompt_differs": True,
        "responses_changed": 1,
        "unread": 0,
    },
    "reference": {"ref_logps": [-1.5, -1e-300]},
    "reward": {"scores": [0.1, 1e300]},
    "pairs": {"pairs": [[0, 1], [2, 1]], "dropped": 1},
    "samples": {"responses": ["x\n", "\N{SNOWMAN}"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_its_row_exactly(tmp_path, kind):
    empty = {name: [] if isinstance(value, list) else value for name, value in KINDS[kind].items()}
    made = column(tmp_path, kind, {}, 2)
    made.fill(lambda groups: iter([KINDS[kind], empty]))
    opened = made.open()
    assert opened.column_names == list(KINDS[kind])
    assert list(opened) == [KINDS[kind], empty]


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("tokens", {**KINDS["tokens"], "prompt_ids": [1 << 40]}),
        ("reward", {"scores": ["0.5"]}),
        ("pairs", {"pairs": [0, 1]}),
    ],
)
def test_a_row_of_another_kind_is_not_kept(tmp_path, kind, row):
    import pyarrow

    made = column(tmp_path, kind, {}, 1)
    with pytest.raises((pyarrow.ArrowException, TypeError, ValueError, OverflowError)):
        made.fill(lambda groups: iter([row]))
    assert made.finished_shards() == {}


def test_an_unknown_kind_is_a_mistake(tmp_path):
    with pytest.raises(KeyError, match="thoughts"):
        column(tmp_path, "thoughts", {}, 1).fill(lambda groups: iter([{}]))
