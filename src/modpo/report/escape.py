"""Text of models and people, made safe to show: nothing in it is markup, invisible or secret."""

from __future__ import annotations

import html

from modpo.base.text import printable, visible

LONGEST_LABEL = 64  # characters


def short(text: str) -> str:
    """For a label in a picture: on one line, and not too long."""
    line = printable(text)
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}…"


def escape(text: str) -> str:
    """For what plotly takes for HTML; the page's templates escape by themselves."""
    return html.escape(visible(text), quote=True)
