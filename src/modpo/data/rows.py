"""Rows of data, from wherever they come: a sequence of dicts, each of which knows where it stands.

Rows are read when asked for, so a large file costs little memory.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from modpo.base.errors import InputError, Problem
from modpo.base.files import sha256_file
from modpo.base.text import first_line

Row = dict[str, Any]

JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
READABLE = "use a .jsonl, .json or .parquet file (the first two also .gz), or the name of a data set on the Hub"


class Rows(ABC):
    """Rows of one source, by their index.

    Attributes:
        name: the file's path as it was given, or the data set's name.
        fingerprint: sha256 of the content. A file's name, place and time of change do not enter.
    """

    name: str
    fingerprint: str

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row:
        return self.read(range(len(self))[index])

    @abstractmethod
    def read(self, index: int) -> Row:
        """The row at an index from 0 to len - 1.

        Raises:
            InputError: the row cannot be read (malformed JSON, invalid UTF-8, a duplicate key, no object).
        """

    def where(self, index: int) -> str:
        """The row's place, for an error message: "name:row INDEX"; of a JSON file "file.jsonl:LINE"."""
        return f"{self.name}:row {index}"


class _TableRows(Rows):
    """Rows of anything that gives a dict for an index."""

    def __init__(self, table: Sequence[Row], name: str) -> None:
        self._table = table
        self.name = name

    def __len__(self) -> int:
        return len(self._table)

    def read(self, index: int) -> Row:
        row = self._table[index]
        if not isinstance(row, dict):
            raise InputError(Problem(self.where(index), "", f"the row is {row!r:.80}", "give each row as a dict"))
        return row

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        digest = hashlib.sha256()
        for row in self._table:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()


class ParquetRows(Rows):
    """Rows of a parquet file. One row group at a time is held in memory."""

    def __init__(self, path: str) -> None:
        import numpy as np
        import pyarrow.parquet as pq

        self.name = path
        self.fingerprint = sha256_file(Path(path))
        with _sound_parquet(path):
            self._file = pq.ParquetFile(path)
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._held: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> Row:
        number = int(self._starts.searchsorted(index, side="right")) - 1
        if self._held[0] != number:
            with _sound_parquet(self.name):
                self._held = (number, self._file.read_row_group(number))
        first = int(self._starts[number])
        row: Row = self._held[1].slice(index - first, 1).to_pylist()[0]
        return row


@contextmanager
def _sound_parquet(path: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        problem = f"not a sound parquet file ({first_line(error)})"
        raise InputError(Problem(path, "", problem, "fetch or write it again")) from None


def rows_from_list(rows: Sequence[Row], name: str = "data set") -> Rows:
    """Rows that are in memory already."""
    return _TableRows(rows, name)


def rows_from_dataset(dataset: Any, name: str = "data set") -> Rows:
    """Rows of a `datasets.Dataset` (one split, not streamed).

    Raises:
        InputError: a DatasetDict or an iterable data set.
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        fix = "give one split of it, not streamed: a datasets.Dataset"
        raise InputError(Problem(name, "", f"got a {type(dataset).__name__}", fix))
    return _TableRows(dataset.with_format(None), name)
