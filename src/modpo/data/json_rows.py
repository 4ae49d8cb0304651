"""Rows of a JSON file: one object a line, or one array of objects."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any, cast

import numpy as np

from modpo.base.errors import InputError, Problem
from modpo.data.placed_rows import PlacedRows, Span, in_arrays, not_utf8
from modpo.data.rows import Row

READ_SIZE = 1 << 20  # bytes
NEWLINE, SPACES = ord("\n"), np.frombuffer(b" \t\n\r\x0b\x0c", dtype=np.uint8)
AS_LINES = "write one JSON object per line (.jsonl), or one array of objects (.json)"


class JsonRows(PlacedRows):
    """Rows of a .jsonl or .json file, gzipped or not."""

    def _find_spans(self, file: IO[bytes]) -> Iterator[np.ndarray]:
        """The rows' places. A .json file holds an array, or else is read like a .jsonl file."""
        file.seek(0)
        start = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        file.seek(start)
        self._is_array = self.name.removesuffix(".gz").endswith(".json") and _first_byte(file) == b"["
        if self._is_array:
            file.seek(start)
            return in_arrays(_array_spans(file.read(), start, self.name))
        file.seek(start)
        return _line_spans(file, start)

    @property
    def parsed_as(self) -> list[str]:
        return [*super().parsed_as, "array" if self._is_array else "lines"]

    def _parse(self, raw: bytes, where: str) -> Row:
        return parse_row(raw, where)


def parse_row(raw: bytes, where: str) -> Row:
    """One JSON object.

    Raises:
        InputError: invalid UTF-8, malformed JSON, a key that occurs twice, anything but an object.
    """
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise InputError(not_utf8(where, error)) from None
    except _DuplicateKeyError as error:
        raise InputError(Problem(where, str(error), "the key occurs twice in one object", "keep one of them")) from None
    except (ValueError, RecursionError) as error:
        raise InputError(Problem(where, "", f"malformed JSON ({_reason(error)})", AS_LINES)) from None
    if not isinstance(row, dict):
        raise InputError(Problem(where, "", f"the row is {_kind(row)}, not a JSON object", AS_LINES))
    return cast(Row, row)


class _DuplicateKeyError(Exception):
    """A key stands twice in an object, where the JSON module would silently keep the last."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(next(name for name in names if names.count(name) > 1))
    return made


def _first_byte(file: IO[bytes]) -> bytes:
    """The first byte that is not white space."""
    for block in iter(lambda: file.read(READ_SIZE), b""):
        if text := block.lstrip():
            return text[:1]
    return b""


def _line_spans(file: IO[bytes], start: int) -> Iterator[np.ndarray]:
    number, begun = 0, list[bytes]()  # of a line that goes on behind the block
    for block in iter(lambda: file.read(READ_SIZE), b""):
        begun.append(block)
        if b"\n" not in block:
            continue
        text = b"".join(begun)
        ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == NEWLINE) + 1
        yield _spans_of(text, ends, start, number)
        whole = int(ends[-1])
        start, number, begun = start + whole, number + len(ends), [text[whole:]]
    if last := b"".join(begun):
        yield _spans_of(last, np.array([len(last)]), start, number)


def _spans_of(text: bytes, ends: np.ndarray, offset: int, number: int) -> np.ndarray:
    """The rows among lines that end at `ends`: an empty line is no row, but counts as a line."""
    starts = np.concatenate([[0], ends[:-1]])
    spaced = np.isin(np.frombuffer(text, dtype=np.uint8)[starts], SPACES)  # hardly any
    blank = [i for i in np.flatnonzero(spaced) if not text[starts[i] : ends[i]].strip()]
    lines = np.arange(number + 1, number + len(ends) + 1)
    return np.delete(np.column_stack([starts + offset, ends + offset, lines]), blank, axis=0)


def _array_spans(raw: bytes, offset: int, path: str) -> Iterator[Span]:
    """Steps over the array's elements one by one, keeping none of them."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(not_utf8(f"{path}:{line}", error)) from None
    decoder, position, seen, line, byte = json.JSONDecoder(), text.index("[") + 1, 0, 1, offset
    try:
        position = _skip_space(text, position)
        more = text[position : position + 1] != "]"
        while more:
            _, end = decoder.raw_decode(text, position)
            line += text.count("\n", seen, position)
            byte += len(text[seen:position].encode())
            size = len(text[position:end].encode())
            yield byte, byte + size, line
            line, byte, seen = line + text.count("\n", position, end), byte + size, end
            position = _skip_space(text, end)
            more = text[position : position + 1] == ","
            position = _skip_space(text, position + 1) if more else position
        if text[position : position + 1] != "]":
            raise json.JSONDecodeError("expecting ',' or ']'", text, position)
        position = _skip_space(text, position + 1)
        if position < len(text):
            raise json.JSONDecodeError("text after the array's end", text, position)
    except (json.JSONDecodeError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else line
        raise InputError(Problem(f"{path}:{line}", "", f"malformed JSON ({_reason(error)})", AS_LINES)) from None


def _skip_space(text: str, position: int) -> int:
    return cast(re.Match[str], _SPACE.match(text, position)).end()


_SPACE = re.compile(r"[ \t\r\n]*")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[0].lower()}{error.msg[1:]}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _kind(value: object) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
