"""Rows of a table as text: .csv and .tsv, gzipped or not. The first line names the columns.

A table of texts knows no types. `prompt`, `chosen` and `rejected` are text, or messages where a cell is a JSON list of
such. Of another column the cells are numbers if all are, truth values if all are, and JSON where they are a list or an
object; an empty cell is null.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

from modpo.base.errors import InputError, Problem
from modpo.data.placed_rows import PlacedRows, Span, in_arrays, not_utf8
from modpo.data.rows import Row

TEXTS = ("prompt", "chosen", "rejected")
DELIMITERS = (",", ";", "\t")
AS_TABLE = "write it with a library for CSV, quotes around cells that hold line breaks; or give a .jsonl file"

_PYTHON_LIST = re.compile(r"\[\s*\{\s*'(role|content|from|value)'")


class CsvRows(PlacedRows):
    """Rows of a .csv or .tsv file."""

    def _find_spans(self, file: IO[bytes]) -> Iterator[np.ndarray]:
        return in_arrays(self._spans(file))

    @property
    def parsed_as(self) -> list[str]:
        return [*super().parsed_as, self._delimiter]

    def _spans(self, file: IO[bytes]) -> Iterator[Span]:
        """The rows' places; notes the columns and what their cells are."""
        of_suffix = DELIMITERS[-1:] if self.name.removesuffix(".gz").endswith(".tsv") else DELIMITERS
        for self._delimiter in of_suffix:
            file.seek(0)
            records = self._records(file)
            _, header = next(records, ((0, 0, 0), []))
            if len(header) > 1:
                break
        self._names = self._checked_names(header)
        kinds = {name: list(KINDS) for name in self._names if name not in TEXTS}
        for span, cells in records:
            self._require_width(cells, f"{self.name}:{span[2]}")
            for name, cell in zip(self._names, cells, strict=True):
                if cell and kinds.get(name):
                    kinds[name] = [kind for kind in kinds[name] if KINDS[kind](cell) is not None]
            yield span
        self._kinds = {name: left[0] for name, left in kinds.items() if left}

    def _records(self, file: IO[bytes]) -> Iterator[tuple[Span, list[str]]]:
        """Each record that is no empty line: its place and its cells."""
        taken = _Lines(file, self.name)
        while True:
            start, line = taken.end, taken.count + 1
            reader = csv.reader(taken, delimiter=self._delimiter, strict=True)
            cells = _next_record(reader, f"{self.name}:{line}")
            if cells is None:
                return
            if cells:
                yield (start, taken.end, line), cells

    def _checked_names(self, header: list[str]) -> list[str]:
        where = f"{self.name}:1"
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise InputError(Problem(where, twice[0], "two columns have this name", "keep one of them"))
        return header

    def _require_width(self, cells: list[str], where: str) -> None:
        if len(cells) != len(self._names):
            problem = f"{len(cells)} cells where the first line names {len(self._names)} columns"
            raise InputError(Problem(where, "", problem, AS_TABLE))

    def _parse(self, raw: bytes, where: str) -> Row:
        lines = (line.decode("utf-8") for line in io.BytesIO(raw))  # not splitlines: it knows ends that CSV does not
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        cells = _next_record(reader, where) or []
        self._require_width(cells, where)
        return {name: self._value(name, cell, where) for name, cell in zip(self._names, cells, strict=True) if name}

    def _value(self, name: str, cell: str, where: str) -> Any:
        if _PYTHON_LIST.match(cell):
            problem = "is a list as Python prints it, not as JSON"
            raise InputError(Problem(where, name, problem, "write messages by json.dumps, or give a .parquet file"))
        if name in TEXTS:
            return _messages(cell) or cell
        if not cell:
            return None
        return KINDS[self._kinds[name]](cell) if name in self._kinds else _json(cell)


class _Lines:
    """The lines of a file as text, one by one; knows where the last one ends."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self.end, self.count = file.tell(), 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        if not self.end:
            line = line.removeprefix(codecs.BOM_UTF8)
        self.end, self.count = self._file.tell(), self.count + 1
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(not_utf8(f"{self._name}:{self.count}", error)) from None


def _next_record(reader: Iterator[list[str]], where: str) -> list[str] | None:
    """The next cells; none at the end."""
    csv.field_size_limit(sys.maxsize)  # a cell may hold a book
    try:
        return next(reader, None)
    except csv.Error as error:
        raise InputError(Problem(where, "", f"malformed CSV ({error})", AS_TABLE)) from None


# --- cells ------------------------------------------------------------------------------------------------


def _number(cell: str) -> float | int | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    if not math.isfinite(number) or "_" in cell:
        return None
    return int(cell) if cell.strip().lstrip("+-").isdecimal() else number


def _truth(cell: str) -> bool | None:
    return {"true": True, "false": False}.get(cell.strip().lower())


KINDS: dict[str, Callable[[str], Any]] = {"number": _number, "truth": _truth}


def _json(cell: str) -> Any:
    """A list or an object; anything else is text."""
    if cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            pass
    return cell


def _messages(cell: str) -> list[Row] | Row | None:
    """A JSON list of messages, or one message as ShareGPT has it."""
    read = _json(cell)
    if isinstance(read, list) and read and all(map(_is_message, read)):
        return read
    return read if isinstance(read, dict) and "from" in read and "value" in read else None


def _is_message(given: Any) -> bool:
    return isinstance(given, dict) and ({"role", "content"} <= given.keys() or {"from", "value"} <= given.keys())
