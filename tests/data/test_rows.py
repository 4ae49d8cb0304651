"""Rows from every source are the same rows, and each knows where it lies."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modpo.base.errors import InputError
from modpo.data.groups import group_rows
from modpo.data.rows import rows_from_dataset, rows_from_list
from modpo.data.sources import open_rows
from tests.data.pairs import ROWS, Row, complaint


def write_jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")


def write_jsonl_crlf_bom(path: Path, rows: list[Row]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())


def write_json_crlf_bom(path: Path, rows: list[Row]) -> None:
    text = json.dumps(rows, indent=1, ensure_ascii=False).replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())


def write_lines_as_json(path: Path, rows: list[Row]) -> None:
    write_jsonl(path, rows)


def write_gz(path: Path, rows: list[Row]) -> None:
    write = write_jsonl if path.name.endswith(".jsonl.gz") else write_json
    plain = path.with_suffix(".plain")
    write(plain, rows)
    path.write_bytes(gzip.compress(plain.read_bytes()))


def write_parquet(path: Path, rows: list[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_jsonl),
        ("rows.jsonl", write_jsonl_crlf_bom),
        ("rows.json", write_json),
        ("rows.json", write_json_crlf_bom),
        ("rows.json", write_lines_as_json),
        ("rows.jsonl.gz", write_gz),
        ("rows.json.gz", write_gz),
        ("rows.parquet", write_parquet),
    ],
)
def test_every_source_gives_the_same_rows(tmp_path: Path, name: str, write: Any) -> None:
    path = tmp_path / name
    write(path, ROWS)
    rows = open_rows(str(path))
    assert len(rows) == 3
    assert list(rows) == ROWS
    assert rows[-1] == ROWS[2]
    assert [rows[0], rows[1]] == ROWS[0:2]
    with pytest.raises(IndexError):
        rows[3]


def test_rows_of_a_dataset() -> None:
    rows = rows_from_dataset(datasets.Dataset.from_list(ROWS))
    assert list(rows) == ROWS
    assert rows.where(1) == "data set:row 1"
    assert rows.fingerprint == rows_from_list(ROWS).fingerprint
    with pytest.raises(InputError, match="DatasetDict"):
        rows_from_dataset(datasets.DatasetDict())


def test_where_is_the_true_line(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    lines.write_text(f"\n{json.dumps(ROWS[0])}\n\n\n{json.dumps(ROWS[1])}")
    assert [open_rows(lines).where(i) for i in (0, 1)] == [f"{lines}:2", f"{lines}:5"]
    array = tmp_path / "rows.json"
    write_json(array, ROWS)  # "[", then each object on five lines
    assert [open_rows(array).where(i) for i in (0, 1, 2)] == [f"{array}:{line}" for line in (2, 7, 12)]
    array.write_text(json.dumps(ROWS))
    assert open_rows(array).where(2) == f"{array}:1 (row 2)"


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    write_jsonl(first, ROWS)
    second.write_bytes(gzip.compress(first.read_bytes(), mtime=1))
    assert open_rows(first).fingerprint == hashlib.sha256(first.read_bytes()).hexdigest()
    assert open_rows(first).fingerprint == open_rows(second).fingerprint
    stat = first.stat()
    before = group_rows(open_rows(first)).fingerprint
    first.write_bytes(first.read_bytes().replace(b"Blue", b"Bleu"))
    os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert group_rows(open_rows(first)).fingerprint != before


def test_a_row_costs_bytes_not_objects(tmp_path: Path) -> None:
    """5,000 rows of 1,000 characters are 5 MB as text; the index and the groups keep under 1 MB of it."""
    import tracemalloc

    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for i in range(5_000):
            row = {"prompt": f"Question {i}\n", "chosen": "y" * 480, "rejected": "n" * 480}
            file.write(json.dumps(row) + "\n")
    tracemalloc.start()
    groups = group_rows(open_rows(path))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(groups) == 5_000
    assert kept < 1e6


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.jsonl", b"", "rows.jsonl: holds no rows"),
        ("rows.jsonl", b"\n \n", "rows.jsonl: holds no rows"),
        ("rows.json", b"[]", "rows.json: holds no rows"),
        ("rows.jsonl", b'\n{"prompt": "a"\n', "rows.jsonl:2: malformed JSON"),
        ("rows.json", b'[{"prompt": "a"},\n\n{"prompt" "b"}]', "rows.json:3: malformed JSON"),
        ("rows.json", b'[{"prompt": "a"}\n', "rows.json:2: malformed JSON"),
        ("rows.json", b'[{"prompt": "a"}]\n\nx', "rows.json:3: malformed JSON"),
        ("rows.jsonl", b"[1, 2]\n", "rows.jsonl:1: the row is a list, not a JSON object"),
        ("rows.json", b'[\n"a"]', "rows.json:2: the row is text, not a JSON object"),
        ("rows.jsonl", b'{"prompt": "a", "prompt": "b"}', "rows.jsonl:1:prompt: the key occurs twice"),
        ("rows.jsonl", b'{"a": {"b": 1, "b": 2}}', "rows.jsonl:1:b: the key occurs twice"),
        ("rows.jsonl", b'{}\n{"prompt": "\xff"}', "rows.jsonl:2: invalid UTF-8 (byte 0xff)"),
        ("rows.json", b'[{},\n{"prompt": "\xff"}]', "rows.json:2: invalid UTF-8 (byte 0xff)"),
        ("rows.jsonl", b"[" * 100_000, "rows.jsonl:1: malformed JSON"),
        ("rows.jsonl.gz", b"not gzip", "rows.jsonl.gz: the gzip file is damaged"),
        ("rows.jsonl.gz", gzip.compress(b"{}" * 999, mtime=1)[:-9], "rows.jsonl.gz: the gzip file is damaged"),
        ("rows.parquet", b"not parquet", "rows.parquet: not a sound parquet file"),
        ("rows.txt", b"{}", "rows.txt: unknown kind of file '.txt'"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        group_rows(open_rows(path))
    assert f"{tmp_path}/{expected}" in complaint(error)
    assert "fix: " in complaint(error)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "../rows", "a/b/c"])
def test_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{name}: no such file in {tmp_path}"):
        open_rows(name)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        open_rows(tmp_path)


def test_unknown_hub_name_says_where_it_looked(tmp_path: Path) -> None:
    code = (
        "from modpo.data.sources import open_rows\nfrom modpo.base.errors import InputError\n"
        "try: open_rows('nobody/nothing', split='dev')\nexcept InputError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert told.startswith("nobody/nothing: no such file or data set (split 'dev')")
    assert f"{tmp_path}/nobody/nothing" in told
    assert f"{tmp_path}/home" in told
    assert told.count("\n") == 1


def test_rows_of_a_data_set_are_the_same_in_whatever_order_they_are_read():
    made = datasets.Dataset.from_list([{"prompt": f"{i}?", "responses": ["a"] * (i % 3)} for i in range(250)])
    rows = rows_from_dataset(made)
    order = [*range(120), 7, 7, *range(110, 250), *random.Random(0).choices(range(250), k=300), 0, 1, 2]
    for i in order:
        row = rows[i]
        assert row == made[i]
        row["responses"].append("changed by who read it")
