"""Text of models and people, made safe to show: nothing in it is markup, invisible or secret."""

from __future__ import annotations

import html
import json
from typing import Any

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
    """For HTML, as content or as an attribute's value."""
    return html.escape(visible(text), quote=True)


def embed_json(value: Any) -> str:
    """For a <script type="application/json">: ASCII only, and no `<` that could end the element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
