"""Artefacts appear whole or not at all, whatever ends the process; what is visible verifies; one process at a time."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modpo.base import files as publish
from modpo.base.errors import EnvironmentFault, InputError, IntegrityError, NumericError, Problem
from modpo.base.files import (
    MANIFEST,
    SEAL,
    locked,
    new_file,
    new_folder,
    read_manifest,
    read_sealed,
    remove_leftovers,
    sha256_file,
    sha256_json,
    write_json,
    write_sealed,
)

# Each system call that changes the disk is a point at which the process may end. `CHILD` runs in a process of its own,
# and ends without any clean-up before the call number sys.argv[2].
CHILD = """
import os, sys
from pathlib import Path
from modpo.base.files import new_file, new_folder

calls = 0

def ends_before(call):
    def counted(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os._exit(9)
        return call(*args, **kwargs)
    return counted

for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
    setattr(os, name, ends_before(getattr(os, name)))
path = Path(sys.argv[1])
"""
WRITE_FILE = CHILD + "with new_file(path) as temporary: temporary.write_text('new')\n"
WRITE_FOLDER = (
    CHILD
    + """
with new_folder(path, {"version": 2}) as temporary:
    (temporary / "part").mkdir()
    (temporary / "part" / "a.txt").write_text("new a")
    (temporary / "b.txt").write_text("new b")
"""
)
MOST_POINTS = 60


def ends_at(code: str, path: Path, point: int) -> bool:
    """Run the code; whether it ended before that call."""
    done = subprocess.run([sys.executable, "-c", code, str(path), str(point)], timeout=60)
    assert done.returncode in (0, 9)
    return done.returncode == 9


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".tmp-"))


# --- files --------------------------------------------------------------------------------------------------


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "deep" / "numbers.txt"
    with new_file(path) as temporary:
        temporary.write_text("1 2 3")
        assert not path.exists()
    assert path.read_text() == "1 2 3"
    assert [p.name for p in path.parent.iterdir()] == ["numbers.txt"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "numbers.txt"
    path.write_text("old")
    with pytest.raises(type(error)), new_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["numbers.txt"]


def test_a_file_that_was_never_written_is_not_published(tmp_path):
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "numbers.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("old", [None, "old"])
def test_a_process_that_ends_at_any_point_leaves_the_old_file_or_the_new_one(tmp_path, old):
    outcomes = set()
    for point in range(1, MOST_POINTS):
        folder = tmp_path / str(point)
        folder.mkdir()
        path = folder / "numbers.txt"
        if old is not None:
            path.write_text(old)
        ended = ends_at(WRITE_FILE, path, point)
        content = path.read_text() if path.exists() else None
        assert content in (old, "new")
        outcomes.add(content)
        if not ended:
            break
    assert outcomes == {old, "new"}  # points on both sides of the rename were tried
    assert point > 3


def test_json_that_no_other_program_reads_is_refused(tmp_path):
    path = tmp_path / "front.json"
    write_json(path, {"β": [1.5, None]})
    assert json.loads(path.read_text("utf-8")) == {"β": [1.5, None]}
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(path, {"loss": value})
    assert json.loads(path.read_text("utf-8")) == {"β": [1.5, None]}
    assert visible(tmp_path) == ["front.json"]


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """The fsyncs and renames, by name of what they concern."""
    calls: list[tuple[str, str]] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def noted(kind, call, name):
        def run(*args, **kwargs):
            calls.append((kind, name(args[0])))
            return call(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noted("fsync", fsync, lambda fd: Path(os.readlink(f"/proc/self/fd/{fd}")).name))
        patch.setattr(os, "replace", noted("rename", replace, lambda path: Path(path).name))
        patch.setattr(os, "rename", noted("rename", rename, lambda path: Path(path).name))
        yield calls


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads names of open files from /proc")
def test_everything_is_on_disk_before_the_rename_and_the_rename_after_it(tmp_path, monkeypatch):
    with recorded(monkeypatch) as calls, new_folder(tmp_path / "point", {}) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "weights").write_text("w")
    published = next(i for i, (kind, name) in enumerate(calls) if kind == "rename" and name.endswith("-point"))
    synced = [name for kind, name in calls[:published] if kind == "fsync"]
    assert {"weights", "deep", temporary.name} <= set(synced)
    assert any(name.endswith(MANIFEST) for name in synced)
    assert calls[published + 1 :] == [("fsync", tmp_path.name)]


# --- folders ------------------------------------------------------------------------------------------------


def folder_of(path: Path, version: int, text: str) -> None:
    with new_folder(path, {"version": version}) as temporary:
        (temporary / "part").mkdir()
        (temporary / "part" / "a.txt").write_text(f"{text} a")
        (temporary / "b.txt").write_text(f"{text} b")


def test_a_folder_appears_whole_with_its_manifest(tmp_path):
    path = tmp_path / "points" / "w"
    folder_of(path, 1, "old")
    manifest = read_manifest(path)
    assert manifest == {
        "version": 1,
        "files": {"b.txt": sha256_file(path / "b.txt"), "part/a.txt": sha256_file(path / "part" / "a.txt")},
    }
    assert visible(path.parent) == [p.name for p in path.parent.iterdir()] == ["w"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_published(tmp_path, bad):
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "point"
    with new_folder(path, {}) as temporary:
        save_file({"a": torch.ones(3), "n": torch.arange(3)}, temporary / "adapter_model.safetensors")
    before = read_manifest(path)
    tensors = {"a": torch.ones(3), "b": torch.tensor([[1.0, bad]], dtype=torch.bfloat16)}
    said = r"^adapter_model\.safetensors: b is not finite.*; fix: "
    with pytest.raises(NumericError, match=said), new_folder(path, {}) as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors")
    assert read_manifest(path) == before
    assert visible(tmp_path) == ["point"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "w"
    folder_of(path, 1, "old")
    (path / "stray.txt").write_text("not in the new one")
    folder_of(path, 2, "new")
    assert read_manifest(path)["version"] == 2
    assert sorted(p.name for p in path.iterdir()) == ["b.txt", MANIFEST, "part"]
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "w"
    folder_of(path, 1, "old")
    with pytest.raises(RuntimeError), new_folder(path, {}) as temporary:  # noqa: PT012
        (temporary / "b.txt").write_text("half")
        raise RuntimeError
    assert read_manifest(path)["version"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


@pytest.mark.parametrize("replaces", [False, True])
def test_a_process_that_ends_at_any_point_leaves_a_folder_that_verifies_or_none(tmp_path, replaces):
    versions = set()
    for point in range(1, MOST_POINTS):
        path = tmp_path / str(point) / "w"
        path.parent.mkdir()
        if replaces:
            folder_of(path, 1, "old")
        ended = ends_at(WRITE_FOLDER, path, point)
        manifest = read_manifest(path)  # raises if it does not verify
        assert (manifest is None) == (not path.exists())
        versions.add(manifest and manifest["version"])
        if not ended:
            break
    assert versions >= ({1, 2} if replaces else {None, 2})
    assert point > 6


@pytest.mark.parametrize("point", ["folder.flushed", "folder.cleared"])
def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch, point):
    path = tmp_path / "w"
    folder_of(path, 1, "old")
    monkeypatch.setenv("MODPO_FAULT", f"{point}:1:eio")
    monkeypatch.setattr("modpo.base.fault_points._reached", Counter())
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        folder_of(path, 2, "new")
    assert (read_manifest(path) or {})["version"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


# --- disks that are full or fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("opener", [new_file, lambda path: new_folder(path, {})], ids=["file", "folder"])
def test_what_rust_says_of_a_full_disk_is_an_os_error(tmp_path, opener):
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as raised, opener(tmp_path / "w"):
        raise Exception(said)
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path)


@pytest.mark.parametrize(("free", "kind"), [(4096, OSError), (1 << 40, RuntimeError)])
def test_an_error_while_the_disk_is_full_is_because_of_it(tmp_path, monkeypatch, free, kind):
    """torch's writer says only that it failed."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, free))
    with pytest.raises(kind), new_file(tmp_path / "state.pt"):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def test_errors_of_modpo_stay_what_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, 0))
    with pytest.raises(InputError), new_file(tmp_path / "state.pt"):
        raise InputError(Problem("rows.jsonl:1", "chosen", "is empty", "fill it"))


# --- leftovers ----------------------------------------------------------------------------------------------


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".tmp-0badcafe-front.json").write_text("{")
    (tmp_path / ".tmp-0badcafe-w" / "deep").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / ".tmp-0badcafe-link").symlink_to(tmp_path / "kept")
    kept = [".tmp-notes", ".tmp-0badcafe", "front.json", "my.tmp-0badcafe-w", ".lock"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / "kept" / ".tmp-0badcafe-inside").write_text("another lock's")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "kept"])
    assert (tmp_path / "kept" / ".tmp-0badcafe-inside").is_file()
    remove_leftovers(tmp_path / "missing")


def test_what_a_killed_process_leaves_is_a_leftover(tmp_path):
    for point in (1, 3):
        assert ends_at(WRITE_FOLDER, tmp_path / "w", point)
        assert ends_at(WRITE_FILE, tmp_path / "f", point)
    assert len(list(tmp_path.iterdir())) >= 2
    remove_leftovers(tmp_path)
    assert visible(tmp_path) == [p.name for p in sorted(tmp_path.iterdir())]


# --- manifests ----------------------------------------------------------------------------------------------


def test_no_manifest_is_no_artefact(tmp_path):
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "missing") is None


@pytest.mark.parametrize("name", ["b.txt", "part/a.txt"])
@pytest.mark.parametrize("damage", ["flip", "remove", "truncate", "folder"])
def test_a_file_that_changed_is_named(tmp_path, name, damage):
    path = tmp_path / "w"
    folder_of(path, 1, "old")
    file = path / name
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "flip":
        content[1] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    elif damage == "folder":
        file.mkdir()
    with pytest.raises(IntegrityError, match=rf"{name}: is missing or was changed; fix: delete .*w and run again"):
        read_manifest(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"null", b"3", b'{"files": []}', b'{"files": 3}', b'{"files": null}', b"\xff\xfe"],
)
def test_a_broken_manifest_is_named(tmp_path, content):
    path = tmp_path / "w"
    folder_of(path, 1, "old")
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(IntegrityError, match=r"manifest.json: is not a manifest .*; fix: delete .*w and run again"):
        read_manifest(path)


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path):
    path = tmp_path / "w"
    with new_folder(path, {"key": "k", "rate": 1e-05, "weights": {"a": 0.1}}) as temporary:
        (temporary / "b.txt").write_text("b")
    manifest = path / MANIFEST
    content = manifest.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(flipped)
        with pytest.raises(IntegrityError, match=r"manifest.json: is not a manifest"):
            read_manifest(path)
    manifest.write_bytes(content)
    assert read_manifest(path) is not None


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: text.replace('"version": 1', '"version":  1'),
        lambda text: text.replace('"version": 1', '"version": 1, "version": 1'),
        lambda text: json.dumps(json.loads(text)),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != SEAL}, indent=2) + "\n",
        lambda text: text.replace("b.txt", "c.txt"),
    ],
    ids=["value", "space", "twice", "layout", "no seal", "name"],
)
def test_an_edited_manifest_is_found(tmp_path, edit):
    path = tmp_path / "w"
    folder_of(path, 1, "old")
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text(edit(text))
    assert (path / MANIFEST).read_text() != text
    with pytest.raises(IntegrityError, match=r"is not a manifest \(it (was changed|has no sha256 of itself)\)"):
        read_manifest(path)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "part", "nul\0", "", "missing.txt"])
def test_a_manifest_lists_files_of_its_own_folder(tmp_path, name):
    """Sealed by somebody who knows how: what it lists must still lie inside."""
    path = tmp_path / "w"
    folder_of(path, 1, "old")
    (tmp_path / "outside.txt").write_text("x")
    target = path / name if "\0" not in name else path
    digest = sha256_file(target) if target.is_file() else "0" * 64
    write_sealed(path / MANIFEST, {"files": {**read_sealed(path / MANIFEST)["files"], name: digest}})
    with pytest.raises(IntegrityError, match="is missing or was changed"):
        read_manifest(path)


def test_a_number_that_is_spelled_otherwise_is_found(tmp_path):
    path = tmp_path / "sealed.json"
    write_sealed(path, {"rate": 1e-05})
    path.write_text(path.read_text().replace("1e-05", "1E-05"))
    with pytest.raises(ValueError, match="it was changed"):
        read_sealed(path)


def test_what_is_sealed_is_read_back_as_json_has_it(tmp_path):
    path = tmp_path / "sealed.json"
    write_sealed(path, {"β": (1, 2.5e-300), "n": {2: "a", 10: None}, "text": "\u2028\n\x1b"})
    assert read_sealed(path) == {"β": [1, 2.5e-300], "n": {"2": "a", "10": None}, "text": "\u2028\n\x1b"}


@pytest.mark.parametrize(
    "content", [b'{"a": NaN}', b"[" * 100_000, b'"\\ud800"', b'{"sha256": "\\ud800"}', b"1" * 5000]
)
def test_hostile_json_is_refused(tmp_path, content):
    path = tmp_path / "sealed.json"
    path.write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011
        read_sealed(path)


# --- what does not belong into a folder ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter_model.bin", "part/chat_template.jinja"])
def test_a_file_that_was_put_beside_the_others_is_found(tmp_path, name):
    path = tmp_path / "w"
    folder_of(path, 1, "old")
    (path / name).write_text("x")
    with pytest.raises(IntegrityError, match=rf"{name}: is not one of the files in manifest.json; fix: move it away"):
        read_manifest(path)


def test_hidden_files_and_empty_folders_are_not_looked_at(tmp_path):
    path = tmp_path / "w"
    folder_of(path, 1, "old")
    (path / ".DS_Store").write_text("x")
    (path / ".cache" / "huggingface").mkdir(parents=True)
    (path / ".cache" / "huggingface" / "upload").write_text("x")
    (path / "empty").mkdir()
    assert read_manifest(path) is not None


@pytest.mark.parametrize("name", ["b.txt", "part/a.txt", "part", MANIFEST])
def test_a_symlink_in_a_folder_is_refused_even_to_equal_content(tmp_path, name):
    path = tmp_path / "w"
    folder_of(path, 1, "old")
    shutil.move(path / name, tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match=r"is missing or was changed|is no regular file"):
        read_manifest(path)


def test_a_symlink_beside_the_files_is_refused(tmp_path):
    path = tmp_path / "w"
    folder_of(path, 1, "old")
    (path / "more").symlink_to(tmp_path)
    with pytest.raises(IntegrityError, match=r"more: is not one of the files"):
        read_manifest(path)


def test_a_folder_may_be_reached_through_a_symlink(tmp_path):
    folder_of(tmp_path / "w", 1, "old")
    (tmp_path / "best").symlink_to(tmp_path / "w")
    assert (read_manifest(tmp_path / "best") or {})["version"] == 1


def test_hash_of_json_does_not_depend_on_the_order_of_keys():
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json({"a": 1, "b": [1, 2]}) != sha256_json({"a": 1, "b": [2, 1]})


# --- locks --------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from modpo.base.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process_holds(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_at_once(tmp_path):
    folder = tmp_path / "run"
    with another_process_holds(folder):
        with pytest.raises(EnvironmentFault, match=r"run: another process is writing here; fix: wait"), locked(folder):
            pass
        with locked(tmp_path / "another"):  # another folder is free
            pass


def test_the_lock_of_a_killed_process_is_free_again(tmp_path):
    with another_process_holds(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
        with locked(tmp_path):
            pass


def test_a_lock_is_given_back_and_is_not_taken_twice(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inside"), locked(tmp_path):
            raise RuntimeError("inside")
    with locked(tmp_path), pytest.raises(EnvironmentFault), locked(tmp_path):
        pass


@pytest.mark.parametrize("left", [b"", b"4711\n", b"\xff" * 100])
def test_a_lock_file_that_was_left_behind_blocks_nobody(tmp_path, left):
    (tmp_path / ".lock").write_bytes(left)
    os.utime(tmp_path / ".lock", (2**31, 2**31))  # from the future
    with locked(tmp_path):
        pass


def test_a_lock_that_is_a_symlink_is_refused(tmp_path):
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(EnvironmentFault, match=r"\.lock: is a symlink; fix: delete it"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "theirs").read_text() == "precious"


@pytest.mark.parametrize("ending", ["leaves", "is killed"])
def test_waiting_until_another_process_lets_go(tmp_path, monkeypatch, capsys, ending):
    """It says at once that it waits, then how far the other one is, as often as it says anything else."""
    monkeypatch.setattr(publish, "SECONDS_BETWEEN_LINES", 0.05)
    with another_process_holds(tmp_path) as holder:
        asked = []

        def progress() -> str:
            asked.append(len(asked))
            if len(asked) == 3:
                holder.kill() if ending == "is killed" else holder.stdin.close()
            return f"{len(asked)} of 9 shards"

        with locked(tmp_path, wait=True, progress=progress):
            assert len(asked) >= 3
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{tmp_path}: waiting for another process, which is at work here, 1 of 9 shards"
    assert said[2].endswith("3 of 9 shards")


def test_nobody_waits_for_a_free_lock(tmp_path, capsys):
    with locked(tmp_path, wait=True):
        pass
    assert capsys.readouterr().err == ""
