"""A message's content as a list of parts: text parts are joined, as templates of models for text and images write them.

{"role": "user", "content": [{"type": "text", "text": "Name a "}, {"type": "text", "text": "colour."}]}
"""

from __future__ import annotations

from typing import Any

TEXTS = ("prompt", "chosen", "rejected", "responses")


class PartError(Exception):
    """A part that is no text. Arguments: field, problem, fix."""


def with_joined_parts(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose messages have text for content.

    Raises:
        PartError: a part of another kind.
    """
    return {name: _joined(value, name) if name in TEXTS else value for name, value in row.items()}


def _joined(value: Any, field: str) -> Any:
    if isinstance(value, str):  # nearly always
        return value
    if isinstance(value, list):
        return [_joined(inner, f"{field}[{i}]") for i, inner in enumerate(value)]
    if isinstance(value, dict) and isinstance(value.get("content"), list):
        parts = enumerate(value["content"])
        return {**value, "content": "".join(_text_of(part, f"{field}.content[{i}]") for i, part in parts)}
    return value


def _text_of(part: Any, field: str) -> str:
    """The text of one part. What a table adds to it is null."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        what = f"a part of type {kind!r}" if isinstance(kind, str) and kind != "text" else f"{part!r:.60}"
        raise PartError(field, f"{what} is no text", "give parts of type text only, or text")
    return str(part["text"])
