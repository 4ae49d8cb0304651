"""Rows of data, from wherever they come: a sequence of dicts, each of which knows where it stands.

Rows are read when asked for, so a large file costs little memory.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from modpo.base.errors import InputError, Problem

Row = dict[str, Any]

ROWS_HELD = 100  # of a data set, in memory at a time

READABLE = (
    "use a .jsonl, .json, .csv or .tsv file (these also .gz), a .parquet or .arrow file, a folder that "
    "datasets.save_to_disk wrote, or the name of a data set on the Hub"
)


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

    @property
    def parsed_as(self) -> list[str]:
        """What decides, besides the content, which rows it makes."""
        return [type(self).__name__]

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
            digest.update(_content(row).encode() + b"\n")
        return digest.hexdigest()


def _content(row: Row) -> str:
    """All that a row says, as text: JSON, or where that would say less the types as well."""
    try:
        text = json.dumps(row, sort_keys=True)
        if json.loads(text) == row:
            return text
    except TypeError:  # JSON has no such values, or names
        pass
    return json.dumps(_typed(row))


def _typed(value: Any) -> list[Any]:
    kind = type(value).__qualname__
    if isinstance(value, dict):
        return [kind, [[_typed(name), _typed(held)] for name, held in value.items()]]
    if isinstance(value, list | tuple):
        return [kind, [_typed(held) for held in value]]
    if hasattr(value, "tolist"):  # an array or a number of numpy's: its text leaves out what is in the middle
        return [kind, str(getattr(value, "dtype", "")), _typed(value.tolist())]
    return [kind, repr(value)]


class _DatasetRows(_TableRows):
    """Rows of a `datasets.Dataset`: who reads them in their order is given them out of a batch, far quicker."""

    def __init__(self, dataset: Any, name: str) -> None:
        super().__init__(dataset, name)
        self._batch: list[Row | None] = []  # each is given away once: who has it may change it
        self._begin = self._next = 0  # where the batch begins, and the row that would be the next in order

    def read(self, index: int) -> Row:
        place = index - self._begin
        if index == self._next and not 0 <= place < len(self._batch):
            columns: Any = self._table[index : index + ROWS_HELD]
            self._batch = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            self._begin, place = index, 0
        self._next = index + 1
        row = self._batch[place] if 0 <= place < len(self._batch) else None
        if row is None:
            return super().read(index)
        self._batch[place] = None
        return row


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
    return _DatasetRows(dataset.with_format(None), name)
