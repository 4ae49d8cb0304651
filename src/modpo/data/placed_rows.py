"""Rows of a text file, found by their place in it.

A file is read once to note where each row stands; a row is parsed when it is asked for. A row therefore costs
three integers of memory, not a dict.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tempfile
import weakref
import zlib
from abc import abstractmethod
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, cast

import numpy as np

from modpo.base.errors import InputError, Problem
from modpo.data.rows import Row, Rows

Span = tuple[int, int, int]  # where a row begins and ends, bytes, and the line it begins on, from 1
SPANS_AT_ONCE = 10_000


class PlacedRows(Rows):
    """Rows of a text file, gzipped or not."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._file = _open(path)
        weakref.finalize(self, self._file.close)
        self.fingerprint = hashlib.file_digest(self._file, "sha256").hexdigest()  # type: ignore[arg-type]
        self._starts, self._ends, self._lines = array("q"), array("q"), array("q")
        for spans in self._find_spans(self._file):
            for places, found in zip((self._starts, self._ends, self._lines), spans.T, strict=True):
                places.frombytes(found.astype(np.int64).tobytes())

    @abstractmethod
    def _find_spans(self, file: IO[bytes]) -> Iterator[np.ndarray]:
        """The rows' places, some at a time, each (rows, 3) as `Span` says."""

    @abstractmethod
    def _parse(self, raw: bytes, where: str) -> Row:
        """The row in these bytes."""

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        lines, line = self._lines, self._lines[index]
        before, after = index > 0 and lines[index - 1], index + 1 < len(lines) and lines[index + 1]
        alone = line not in (before, after)  # lines count from 1
        return f"{self.name}:{line}" if alone else f"{self.name}:{line} (row {index})"

    def read(self, index: int) -> Row:
        start = self._starts[index]
        self._file.seek(start)
        return self._parse(self._file.read(self._ends[index] - start), self.where(index))


def _open(path: str) -> IO[bytes]:
    """The file itself, or a .gz unpacked into a nameless temporary file: rows are read by position."""
    if not path.endswith(".gz"):
        return Path(path).open("rb")
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the rows
    try:
        with gzip.open(path, "rb") as packed:
            shutil.copyfileobj(packed, unpacked)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        unpacked.close()
        raise InputError(Problem(path, "", f"the gzip file is damaged ({error})", "fetch or pack it again")) from None
    unpacked.seek(0)
    return cast(IO[bytes], unpacked)


def in_arrays(spans: Iterator[Span]) -> Iterator[np.ndarray]:
    """Places that are found one by one, some at a time."""
    while some := list(islice(spans, SPANS_AT_ONCE)):
        yield np.array(some, dtype=np.int64)


def not_utf8(where: str, error: UnicodeDecodeError) -> Problem:
    """Bytes that are no text."""
    byte = error.object[error.start]
    return Problem(where, "", f"invalid UTF-8 (byte 0x{byte:02x})", "save the file as UTF-8")
