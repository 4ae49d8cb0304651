"""Rows of CSV, Arrow and saved data sets are those that were written, and what is damaged is said in one line."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from modpo.base.errors import InputError
from modpo.data.groups import group_rows
from modpo.data.sources import open_rows
from tests.data.pairs import PAIR, ROWS, Row, complaint

ODD = [
    {"prompt": 'a "quoted", cell\nof two lines\n', "chosen": "line\u2028separator", "rejected": "7"},
    {"prompt": "\u00e9\u4f60\n", "chosen": "tab\there", "rejected": "[1, 2]"},
    {"prompt": "p\n", "chosen": "\ufeffx", "rejected": "y" * 200_000},
]
CHAT = [
    {
        "prompt": [{"role": "user", "content": "Hi, you"}],
        "chosen": [{"role": "assistant", "content": "a\nb"}],
        "rejected": [{"role": "assistant", "content": "c"}],
    }
] * 3


def write_csv(path: Path, rows: list[Row], delimiter: str = ",", end: str = "\n") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter, lineterminator=end)
        writer.writeheader()
        for row in rows:
            writer.writerow({n: v if isinstance(v, str | int | float) else json.dumps(v) for n, v in row.items()})


def write_csv_gz(path: Path, rows: list[Row]) -> None:
    write_csv(path.with_suffix(".plain"), rows)
    path.write_bytes(gzip.compress(path.with_suffix(".plain").read_bytes()))


def write_excel(path: Path, rows: list[Row]) -> None:
    write_csv(path, rows, ";", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def write_tsv(path: Path, rows: list[Row]) -> None:
    write_csv(path, rows, "\t")


def write_arrow_file(path: Path, rows: list[Row]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=2)


def write_arrow_stream(path: Path, rows: list[Row]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_compressed_stream(path: Path, rows: list[Row]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table, max_chunksize=2)


def write_dictionaries(path: Path, rows: list[Row]) -> None:
    table = pa.Table.from_pylist(rows)
    if pa.types.is_string(table.schema.field("chosen").type):
        table = table.set_column(1, "chosen", table["chosen"].dictionary_encode())
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_saved(path: Path, rows: list[Row]) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(str(path), num_shards=2)


def write_saved_splits(path: Path, rows: list[Row]) -> None:
    made = {"test": datasets.Dataset.from_list([PAIR]), "train": datasets.Dataset.from_list(rows)}
    datasets.DatasetDict(made).save_to_disk(str(path))


WRITERS = [
    ("rows.csv", write_csv),
    ("rows.csv", write_excel),
    ("rows.csv.gz", write_csv_gz),
    ("rows.tsv", write_tsv),
    ("rows.arrow", write_arrow_file),
    ("rows.arrow", write_arrow_stream),
    ("rows.arrow", write_compressed_stream),
    ("rows.arrow", write_dictionaries),
    ("saved", write_saved),
    ("saved", write_saved_splits),
]


@pytest.mark.parametrize("given", [ROWS, ODD, CHAT], ids=["rows", "odd", "chat"])
@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_every_table_gives_the_same_rows(tmp_path: Path, name: str, write: Any, given: list[Row]) -> None:
    write(tmp_path / name, given)
    rows = open_rows(str(tmp_path / name))
    assert list(rows) == given
    assert [rows[2], rows[0], rows[-1]] == [given[2], given[0], given[2]]
    assert len(group_rows(rows)) == len({json.dumps(row["prompt"]) for row in given})


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_the_place_does_not_enter_the_fingerprint(tmp_path: Path, name: str, write: Any) -> None:
    first, second = tmp_path / "a" / name, tmp_path / "b" / f"other-{name}"
    for path in (first, second):
        path.parent.mkdir()
    write(first, ROWS)
    (shutil.copytree if first.is_dir() else shutil.copy)(first, second)
    assert open_rows(first).fingerprint == open_rows(second).fingerprint
    other = tmp_path / "c"
    other.mkdir()
    write(other / name, [*ROWS[:2], {**ROWS[2], "chosen": "Green."}])
    assert open_rows(first).fingerprint != open_rows(other / name).fingerprint


def test_a_record_stands_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,chosen,rejected\n\n"p\nq",a,b\nr,c,d\n')
    rows = open_rows(path)
    assert [rows.where(i) for i in (0, 1)] == [f"{path}:3", f"{path}:5"]


def test_what_cells_are(tmp_path: Path) -> None:
    """A column of numbers is one throughout or not at all; texts never are. What pandas counts rows by has no name."""
    path = tmp_path / "rows.csv"
    head = ",prompt,chosen,rejected,chosen_score,rejected_score,safe,answer,tags"
    path.write_text(f'{head}\n0,1,2,3,7,1.5,True,42,"[""a"", 1]"\n1,4,5,6,,-1e3,false,x,[broken\n')
    assert list(open_rows(path)) == [
        {
            **{"prompt": "1", "chosen": "2", "rejected": "3", "chosen_score": 7, "rejected_score": 1.5},
            **{"safe": True, "answer": "42", "tags": ["a", 1]},
        },
        {
            **{"prompt": "4", "chosen": "5", "rejected": "6", "chosen_score": None, "rejected_score": -1000.0},
            **{"safe": False, "answer": "x", "tags": "[broken"},
        },
    ]
    assert group_rows(open_rows(path))[0].columns == {"score": (7.0, 1.5)}


def test_rows_of_responses_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_csv(path, [{"prompt": "p\n", "responses": ["a", "b"], "pairs": {"better": [[1, 0]]}, "score": [1.0, 2.0]}])
    (group,) = group_rows(open_rows(path), columns=["score"])
    assert (group.responses, group.pairs, group.columns) == (("a", "b"), {"better": ((1, 0),)}, {"score": (1.0, 2.0)})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "rows.csv: holds no rows"),
        (b"prompt,chosen,rejected\n", "rows.csv: holds no rows"),
        (b"prompt,chosen,rejected\na,b\n", "rows.csv:2: 2 cells where the first line names 3 columns"),
        (b"prompt,chosen,rejected\na,b,c\nd,e,f,g\n", "rows.csv:3: 4 cells where the first line names 3 columns"),
        (b'prompt,chosen,rejected\na,b,c\n"d,e,f\n', "rows.csv:3: malformed CSV (unexpected end of data)"),
        (b'prompt,chosen,rejected\n"a"b,c,d\n', "rows.csv:2: malformed CSV"),
        (b"prompt,prompt,rejected\na,b,c\n", "rows.csv:1:prompt: two columns have this name"),
        (b"prompt,chosen,rejected\na,b\xff,c\n", "rows.csv:2: invalid UTF-8 (byte 0xff)"),
        (b"prompt,chosen,rejected\na,\"[{'role': 'user'}]\",c\n", "rows.csv:2:chosen: is a list as Python prints it"),
        (b"prompt,chosen,rejected\na,,c\n", "rows.csv:2:chosen: the response is empty"),
        (b"question,chosen,rejected\na,b,c\n", "rows.csv:2:question: there is no `prompt`"),
    ],
)
def test_bad_csv(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        group_rows(open_rows(path))
    assert f"{tmp_path}/{expected}" in complaint(error)
    assert "fix: " in complaint(error)


@pytest.mark.parametrize("write", [write_arrow_file, write_arrow_stream, write_compressed_stream])
def test_damaged_arrow(tmp_path: Path, write: Any) -> None:
    path = tmp_path / "rows.arrow"
    write(path, ROWS)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not arrow", b""):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"rows\.arrow: (not a sound Arrow file|holds no rows)"):
            group_rows(open_rows(path))


def test_saved_folders(tmp_path: Path) -> None:
    write_saved_splits(tmp_path / "saved", ROWS)
    assert list(open_rows(tmp_path / "saved", split="test")) == [PAIR]
    assert open_rows(tmp_path / "saved").where(1) == f"{tmp_path}/saved:row 1"
    with pytest.raises(InputError, match=r"saved:split: has no split 'dev'; fix: name one of its splits .*test, train"):
        open_rows(tmp_path / "saved", split="dev")
    (file,) = (tmp_path / "saved" / "train").glob("*.arrow")
    file.unlink()
    with pytest.raises(InputError, match=r"saved: lacks data-00000-of-00001\.arrow"):
        open_rows(tmp_path / "saved")
    (tmp_path / "saved" / "train" / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"state\.json: cannot be read"):
        open_rows(tmp_path / "saved")


@pytest.mark.parametrize(("name", "write"), [("rows.csv", write_csv), ("rows.arrow", write_arrow_stream)])
def test_a_row_of_a_table_costs_bytes(tmp_path: Path, name: str, write: Any) -> None:
    """5,000 rows of 1,000 characters are 5 MB as text; the index and the groups keep under 1 MB of it."""
    import tracemalloc

    write(
        tmp_path / name,
        [{"prompt": f"Question {i}\n", "chosen": "y" * 480, "rejected": "n" * 480} for i in range(5_000)],
    )
    tracemalloc.start()
    groups = group_rows(open_rows(tmp_path / name))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(groups) == 5_000
    assert kept < (1e6 if name == "rows.csv" else 2e6)  # two rows a batch here
