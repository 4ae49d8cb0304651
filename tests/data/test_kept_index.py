"""What a pass over the rows finds is kept, and who starts again reads none of them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modpo.base.errors import InputError, IntegrityError
from modpo.base.files import MANIFEST, SEAL, new_folder
from modpo.data import kept_index
from modpo.data.groups import PromptGroups, group_rows
from modpo.data.row_reader import RowReader
from modpo.data.rows import rows_from_list
from modpo.data.sources import open_rows
from tests.kit import flip_a_bit, write_rows

ROWS = [
    {"prompt": "Name a colour.\n", "responses": ["Blue.", "Red.", "Red."], "pairs": {"short": [[1, 0], [1, 2]]}},
    {"prompt": "Name a fruit.\n", "responses": ["Fig.", "Pear."], "pairs": {"long": [[1, 0]], "short": [[0, 1]]}},
    {"prompt": "Name a colour.\n", "responses": ["Blue.", "Green."], "pairs": {"long": [[1, 0]]}},
    {"prompt": "Name a fruit.\n", "responses": [" ", "Pear."]},
    {"prompt": "Name a fruit.\n", "responses": ["Fig.", "Pear."], "pairs": {"long": [[1, 0]], "short": [[0, 1]]}},
]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the rows that were read."""
    numbers: list[int] = []
    real = RowReader.read

    def reads(self: RowReader, number: int) -> Any:
        numbers.append(number)
        return real(self, number)

    monkeypatch.setattr(RowReader, "read", reads)
    return numbers


def found(folder: Path, *, keep: bool = True, new_process: bool = True, **options: Any) -> PromptGroups:
    if new_process:
        kept_index._HELD.clear()
    rows = open_rows(folder / "rows.jsonl")
    return group_rows(rows, skip_empty=True, cache_dir=folder / "cache", keep=keep, **options)


def said(groups: PromptGroups) -> list[Any]:
    return [list(groups), groups.counts, groups.warnings, groups.label_sets, groups.fingerprint, groups.conversational]


def test_what_is_kept_is_what_was_found(tmp_path: Path, read: list[int]) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    without = said(group_rows(open_rows(tmp_path / "rows.jsonl"), skip_empty=True))
    assert said(found(tmp_path)) == without
    read.clear()
    again = found(tmp_path)
    assert (again.label_sets, again.counts, again.warnings, read) == (without[3], without[1], without[2], [])
    assert said(again) == without


def test_label_sets_are_those_of_the_groups_that_are_selected(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    for chosen in ([0], [1], [1, 0], [0, 0, 1]):
        groups = found(tmp_path).select(chosen)
        counted = Counter[str]()
        for group in groups:
            counted.update({name: len(pairs) for name, pairs in group.pairs.items()})
        assert list(groups.label_sets.items()) == list(counted.items())
        assert groups.response_counts.tolist() == [len(group.responses) for group in groups]


def test_a_process_reads_rows_once_though_nothing_is_written(tmp_path: Path, read: list[int]) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    found(tmp_path, keep=False)
    read.clear()
    found(tmp_path, new_process=False)
    assert read == []
    assert len(list(tmp_path.glob("cache/rows/*/index.npz"))) == 1


@pytest.mark.parametrize("options", [{"columns": ["grade"]}, {"skip_empty": False}], ids=str)
def test_rows_that_another_reading_refuses_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    found(tmp_path)
    with pytest.raises(InputError, match=r"rows.jsonl:[14]:"):
        group_rows(open_rows(tmp_path / "rows.jsonl"), cache_dir=tmp_path / "cache", keep=True, **options)


def test_other_rows_are_read(tmp_path: Path, read: list[int]) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    found(tmp_path)
    write_rows(tmp_path / "rows.jsonl", ROWS[:2])
    read.clear()
    assert found(tmp_path).counts["rows"] == 2
    assert read


def test_refused_rows_leave_nothing_behind(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "Name a river.\n"}])
    with pytest.raises(InputError, match=r"rows.jsonl:6"):
        found(tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    found(tmp_path)
    flip_a_bit(next(tmp_path.glob("cache/rows/*/index.npz")))
    with pytest.raises(IntegrityError, match=r"index.npz: is missing or was changed; fix: delete"):
        found(tmp_path)


def test_prompts_are_held_out_as_their_hashes_say(tmp_path: Path) -> None:
    """Drawn by `content_key` of seed and prompt, one at a time."""
    from modpo.data.group_builder import content_key

    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{i}?\n", "responses": ["a", "b"]} for i in range(40)])
    groups = found(tmp_path)
    train, held_out = groups.split_held_out(7, seed=3)
    draws = np.array([content_key([3, int(key)]) for key in groups.keys], dtype=np.uint64)
    assert set(held_out.keys.tolist()) == set(groups.keys[np.argsort(draws)[:7]].tolist())
    assert len(train) == 33


def test_an_index_with_other_content_is_made_anew(tmp_path: Path, read: list[int]) -> None:
    """As a keyword made it that numpy before 2.2 takes for one more array; or with an array too few."""
    write_rows(tmp_path / "rows.jsonl", ROWS)
    first = said(found(tmp_path))
    folder = next(tmp_path.glob("cache/rows/*"))
    with np.load(folder / kept_index.FILE) as file:
        arrays = dict(file)
    assert not {name: array for name, array in arrays.items() if array.dtype == object}
    for changed, reads in (({"allow_pickle": np.array(False), **arrays}, False), ({"rows": arrays["rows"]}, True)):
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        about = {name: manifest[name] for name in manifest.keys() - {"files", SEAL}}
        with new_folder(folder, about) as new:
            np.savez(new / kept_index.FILE, **changed)
        read.clear()
        groups = found(tmp_path)
        assert bool(read) == reads
        assert said(groups) == first
    read.clear()
    found(tmp_path)
    assert read == []


def test_what_a_function_lays_out_is_not_kept_on_disk(
    tmp_path: Path, read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it imports may have changed at the next start."""
    (tmp_path / "kept_layout_helper.py").write_text("PROMPT = 'First?\\n'\n")
    (tmp_path / "kept_layout.py").write_text(
        "import kept_layout_helper\ndef row(raw):\n    return {**raw, 'prompt': kept_layout_helper.PROMPT}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    write_rows(tmp_path / "rows.jsonl", ROWS[:2])
    assert found(tmp_path, format="kept_layout:row")[0].prompt == "First?\n"
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("kept_layout_helper.PROMPT", "Second?\n")
    assert found(tmp_path, format="kept_layout:row")[0].prompt == "Second?\n"
    read.clear()
    found(tmp_path, format="kept_layout:row", new_process=False)
    assert read == []


def test_equal_bytes_that_are_parsed_otherwise_are_read(tmp_path: Path) -> None:
    """A JSON array is no file of lines."""
    text = json.dumps(ROWS, indent=1)
    (tmp_path / "rows.json").write_text(text)
    (tmp_path / "rows.jsonl").write_text(text)
    group_rows(open_rows(tmp_path / "rows.json"), skip_empty=True, cache_dir=tmp_path / "cache", keep=True)
    with pytest.raises(InputError, match=r"rows.jsonl:1:"):
        found(tmp_path)


def test_equal_bytes_of_two_tables_are_read_each_by_its_delimiter(tmp_path: Path) -> None:
    text = "prompt,a\tchosen,b\trejected,c\nA?,1\tyes,2\tno,3\n"
    kinds = []
    for name in ("rows.csv", "rows.tsv"):
        (tmp_path / name).write_text(text)
        rows = open_rows(tmp_path / name)
        kinds.append((rows.fingerprint, rows.parsed_as))
    assert kinds[0][0] == kinds[1][0]
    assert kinds[0][1] != kinds[1][1]


def test_rows_in_memory_are_told_apart_by_all_that_they_say() -> None:
    middle = np.zeros(5000)
    middle[2500] = 1
    values = [[1, 2], (1, 2), np.zeros(5000), middle, np.zeros(5000, dtype=int), 0, "0", np.int64(0), b"0"]
    values += [{1: 2}, {"1": 2}, [(0,)], [[0]], float("nan"), None, "None"]
    assert len({rows_from_list([{"value": value}]).fingerprint for value in values}) == len(values)
    copied = [copy.deepcopy(value) for value in values]
    assert (
        rows_from_list([{"v": v} for v in copied]).fingerprint == rows_from_list([{"v": v} for v in values]).fingerprint
    )


def test_plain_rows_are_known_by_their_json() -> None:
    """Everything that is cached for them hangs on it."""
    written = b"".join(json.dumps(row, sort_keys=True).encode() + b"\n" for row in ROWS)
    assert rows_from_list(ROWS).fingerprint == hashlib.sha256(written).hexdigest()


def test_an_index_that_is_held_already_drives_out_no_other(tmp_path: Path, read: list[int]) -> None:
    kept_index._HELD.clear()
    for number in range(kept_index.MOST_HELD):
        write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{number}?\n", "responses": ["a", "b"]}])
        found(tmp_path, keep=False, new_process=False)
    before = list(kept_index._HELD)
    found(tmp_path, keep=False, new_process=False)
    assert list(kept_index._HELD) == before
