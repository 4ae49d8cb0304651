"""One row of the table, and how it comes from the process that found it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.own_process import MARK

HELD, FAILED, MISSING, MEASURED = "held", "failed", "missing", "measured"


@dataclass(frozen=True)
class Row:
    """What one check found.

    Attributes:
        status: HELD or FAILED where there is a bar; MEASURED where there is none; MISSING where it could not be tried.
        numbers: the same for machines.
    """

    part: str
    check: str
    result: str
    status: str
    numbers: dict[str, Any] = field(default_factory=dict)


def judged(part: str, check: str, result: str, held: bool, **numbers: Any) -> Row:
    """A row with a bar."""
    return Row(part, check, result, HELD if held else FAILED, numbers)


def tell_row(row: Row) -> None:
    """Print a row for the process that waits for it."""
    print(MARK + json.dumps(asdict(row)), flush=True)


def told_rows(lines: Iterable[str]) -> Iterator[Row]:
    """The rows among what a part printed."""
    for line in lines:
        if line.startswith(MARK):
            yield Row(**json.loads(line.removeprefix(MARK)))


def table(rows: Iterable[Row]) -> str:
    """The rows as text in columns."""
    cells = [("part", "check", "result", ""), *((r.part, r.check, r.result, r.status) for r in rows)]
    part, check, status = (max(len(row[i]) for row in cells) for i in (0, 1, 3))
    return "\n".join(f"{p:{part}}  {s:{status}}  {c:{check}}  {r}".rstrip() for p, c, r, s in cells)
