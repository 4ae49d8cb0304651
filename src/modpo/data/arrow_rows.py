"""Rows of tables that are stored by columns: parquet and Arrow files, folders of `datasets.save_to_disk`.

One batch of rows at a time is held in memory.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modpo.base.errors import InputError, Problem
from modpo.base.files import sha256_file
from modpo.base.text import first_line
from modpo.data.rows import Row, Rows

STATE = "state.json"  # what save_to_disk writes beside the rows of one split
SPLITS = "dataset_dict.json"  # what it writes above the folders of several


class BatchedRows(Rows):
    """Rows that are read a batch at a time."""

    def _set_sizes(self, sizes: Iterable[int]) -> None:
        """How many rows each batch has."""
        import numpy as np

        self._starts = np.cumsum([0, *sizes])
        self._held: tuple[int, Any] = (-1, None)

    @abstractmethod
    def _read_batch(self, number: int) -> Any:
        """A `pyarrow` table or batch."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> Row:
        number = int(self._starts.searchsorted(index, side="right")) - 1
        if self._held[0] != number:
            with _sound(self.name):
                self._held = (number, self._read_batch(number))
        with _sound(self.name):
            row: Row = self._held[1].slice(index - int(self._starts[number]), 1).to_pylist()[0]
        return row


class ParquetRows(BatchedRows):
    """Rows of a parquet file."""

    def __init__(self, path: str) -> None:
        import pyarrow.parquet as pq

        self.name = path
        self.fingerprint = sha256_file(Path(path))
        with _sound(path):
            self._file = pq.ParquetFile(path)
        metadata = self._file.metadata
        self._set_sizes(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))

    def _read_batch(self, number: int) -> Any:
        return self._file.read_row_group(number)


class ArrowRows(BatchedRows):
    """Rows of Arrow files, one after the other, mapped into memory. Each is a file or a stream of Arrow's IPC."""

    def __init__(self, paths: Sequence[str], name: str) -> None:
        self.name = name
        hashes = [sha256_file(Path(path)) for path in paths]
        self.fingerprint = hashes[0] if len(paths) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        self._batches: list[Any] = []  # each () -> batch
        sizes = []
        for path in paths:
            with _sound(path):
                for size, batch in _batches(path):
                    self._batches.append(batch)
                    sizes.append(size)
        self._set_sizes(sizes)

    def _read_batch(self, number: int) -> Any:
        return self._batches[number]()


def _batches(path: str) -> Iterator[tuple[int, Any]]:
    """Of each batch of a file the number of its rows, and a function that reads it."""
    import pyarrow as pa

    source = pa.memory_map(path)
    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        yield from _stream_batches(source)
        return
    for i in range(file.num_record_batches):
        yield file.get_batch(i).num_rows, lambda i=i: file.get_batch(i)


def _stream_batches(source: Any) -> Iterator[tuple[int, Any]]:
    """As `_batches`. A stream has no table of contents: its batches are found by reading it once."""
    import pyarrow as pa

    source.seek(0)
    with pa.ipc.open_stream(source) as stream:
        schema = stream.schema
        encoded = any(pa.types.is_dictionary(field.type) for field in schema)
        place = source.tell()
        for batch in stream:
            # Values of dictionaries stand in batches of their own: these rows are kept as they were read.
            yield batch.num_rows, (lambda batch=batch: batch) if encoded else _reads_at(source, place, schema)
            place = source.tell()


def _reads_at(source: Any, place: int, schema: Any) -> Any:
    def read() -> Any:
        import pyarrow as pa

        source.seek(place)
        return pa.ipc.read_record_batch(pa.ipc.read_message(source), schema)

    return read


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of a `datasets.Dataset` or `datasets.DatasetDict` wrote a folder."""
    return (folder / STATE).is_file() or (folder / SPLITS).is_file()


def saved_rows(path: str, split: str) -> Rows:
    """Rows of a folder that `save_to_disk` wrote.

    Args:
        split: which is read, where there are several.

    Raises:
        InputError: no such split; files that are missing or damaged.
    """
    folder = Path(path)
    if not (folder / STATE).is_file():
        splits = _told(folder / SPLITS, "splits")
        if split not in splits:
            fix = f"name one of its splits as `split`: {', '.join(map(str, splits))}"
            raise InputError(Problem(path, "split", f"has no split {split!r}", fix))
        folder /= split
    files = [folder / str(file["filename"]) for file in _told(folder / STATE, "_data_files")]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(Problem(path, "", f"lacks {missing[0].name}", "fetch or write it again"))
    return ArrowRows([str(file) for file in files], path)


def _told(file: Path, name: str) -> list[Any]:
    try:
        told: list[Any] = json.loads(file.read_text("utf-8"))[name]
        if not isinstance(told, list) or (name == "_data_files" and not all("filename" in entry for entry in told)):
            raise TypeError(f"{name} is not what save_to_disk writes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"cannot be read ({first_line(error)})"
        raise InputError(Problem(str(file), "", problem, "fetch or write the folder again")) from None
    return told


@contextmanager
def _sound(path: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except PermissionError:
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, EOFError) as error:
        kind = "parquet file" if path.endswith(".parquet") else "Arrow file"
        problem = f"not a sound {kind} ({first_line(error)})"
        raise InputError(Problem(path, "", problem, "fetch or write it again")) from None
