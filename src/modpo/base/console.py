"""Tables on standard output. What stands in a cell is text: no markup, nothing invisible, no secret."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from modpo.base.text import printable


def text_table(*headers: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text, the others numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for i, header in enumerate(headers):
        table.add_column(Text(header), justify="left" if i < left else "right", overflow="fold")
    return table


def add_row(table: Table, *cells: object) -> None:
    """Add a row; a cell that is no rich text is made printable."""
    table.add_row(*[cell if isinstance(cell, Text) else Text(printable(str(cell))) for cell in cells])


def print_page(parts: Iterable[RenderableType], width: int) -> None:
    """Print tables and texts one below the other.

    Args:
        width: columns, where standard output is no terminal.
    """
    out = sys.stdout
    terminal = out is not None and out.isatty()
    page = io.StringIO()
    console = Console(file=page, force_terminal=terminal, width=None if terminal else width, highlight=False)
    for part in parts:
        console.print(part)
    encoding = getattr(out, "encoding", None) or "utf-8"
    text = "\n".join(line.rstrip() for line in page.getvalue().splitlines())
    print(text.encode(encoding, "backslashreplace").decode(encoding))
