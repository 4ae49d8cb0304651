"""Text of models and people, made safe to show: nothing in it is markup, invisible or secret."""

from __future__ import annotations

import html

from modpo.base.text import JOINERS, printable

LONGEST_LABEL = 64  # characters


def visible(text: str) -> str:
    """`text` with invisible characters spelled out: ESC as `\\x1b`, U+2028 as `\\u2028`. Lines stay lines."""
    return printable(text.replace("\r\n", "\n"), kept=f"{JOINERS}\n\t")


def short(text: str) -> str:
    """For a label in a picture: on one line, and not too long."""
    line = printable(text)
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}…"


def escape(text: str) -> str:
    """For what plotly takes for HTML; the page's templates escape by themselves."""
    return html.escape(visible(text), quote=True)
