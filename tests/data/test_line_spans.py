"""Where the rows of a file of lines stand, found many at a time, against Python's own way through a file."""

from __future__ import annotations

import io
import random

import pytest

from modpo.data import json_rows


def one_by_one(text: bytes, start: int) -> list[list[int]]:
    """Each line that is not blank: where it begins and ends, and its number."""
    spans, place = [], start
    for number, line in enumerate(io.BytesIO(text[start:]), start=1):
        if line.strip():
            spans.append([place, place + len(line), number])
        place += len(line)
    return spans


def made(seed: int) -> bytes:
    rng = random.Random(seed)
    pieces = [b"{}", b' {"a": 1}', b"", b" \t", b"\r", b"x" * 50, b"\x0b\x0c", "é\u2028".encode()]
    return b"\n".join(rng.choice(pieces) for _ in range(rng.randrange(60))) + rng.choice([b"", b"\n", b"\n\n"])


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("seed", range(12))
def test_lines_are_found_where_they_stand(monkeypatch: pytest.MonkeyPatch, size: int, seed: int) -> None:
    monkeypatch.setattr(json_rows, "READ_SIZE", size)
    text, start = made(seed), seed % 3
    file = io.BytesIO(text)
    file.seek(start)
    found = [span for spans in json_rows._line_spans(file, start) for span in spans.tolist()]
    assert found == one_by_one(text, start)
