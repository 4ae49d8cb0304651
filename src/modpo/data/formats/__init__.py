"""Layouts of rows: a raw row into one as `modpo.data.preference_row` reads it.

Public data sets of one kind share a file; `function` is for a function of the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modpo.base.errors import InputError, Problem
from modpo.data.formats.comparisons import pku_saferlhf_row, shp_row, summarize_from_feedback_row
from modpo.data.formats.conversations import hh_rlhf_row, sharegpt_row
from modpo.data.formats.fields import HUB
from modpo.data.formats.function import import_layout
from modpo.data.formats.qa_feedback import qa_feedback_row, qa_feedback_spans_row
from modpo.data.formats.ratings import beavertails_row, helpsteer_row, ultrafeedback_row
from modpo.data.rows import Row

__all__ = ["FORMATS", "HUB", "PROMPTS", "RULES", "SEVERAL_RATERS", "Format", "Layout", "find_layout", "is_function"]

RULES = 2  # raise it when rows of the same file are read into other rows or groups, so that caches are not reused
PROMPTS = "prompts"  # the format of rows that have a prompt and no answers yet
Format = Callable[[Row], Row | None]  # None: the row holds nothing to learn from, and is left out and counted


def _as_it_is(row: Row) -> Row:
    return row


def _prompt_only(row: Row) -> Row:
    """A prompt to answer, with no answer yet: what policies are measured on, or sampled from."""
    return {"responses": [], **row}


FORMATS: dict[str, Format] = {
    "preference": _as_it_is,
    PROMPTS: _prompt_only,
    "sharegpt": sharegpt_row,
    "hh_rlhf": hh_rlhf_row,
    "pku_saferlhf": pku_saferlhf_row,
    "beavertails": beavertails_row,
    "ultrafeedback": ultrafeedback_row,
    "helpsteer": helpsteer_row,
    "shp": shp_row,
    "summarize_from_feedback": summarize_from_feedback_row,
    "qa_feedback": qa_feedback_row,
    "qa_feedback_spans": qa_feedback_spans_row,
}

# Where one response to one prompt may be judged more than once, by several people or because several models gave it:
# two values of a column are then two opinions, not a mistake in the data.
SEVERAL_RATERS = frozenset(
    {"beavertails", "helpsteer", "pku_saferlhf", "shp", "summarize_from_feedback", "ultrafeedback"}
)


@dataclass(frozen=True)
class Layout:
    """How the rows of one source are laid out."""

    name: str  # in FORMATS, or "package.module:function"
    read: Format
    identity: str | dict[str, Any]  # what decides how rows are read: the name; of a function, its source


def find_layout(name: str, *, where: str, field: str = "format") -> Layout:
    """The layout of that name.

    Args:
        name: in FORMATS, or "package.module:function", which is imported.
        where, field: what an error names.

    Raises:
        InputError: no such layout; a function that cannot be imported, or does not take one row.
    """
    if is_function(name):
        return Layout(name, *import_layout(name, where=where, field=field))
    if name not in FORMATS:
        fix = f"use one of: {', '.join(FORMATS)}; or a function of your own, as package.module:function"
        raise InputError(Problem(where, field, f"unknown format {name!r}", fix))
    return Layout(name, FORMATS[name], name)


def is_function(name: str) -> bool:
    """Whether a layout's name means a function of the user's."""
    return ":" in name
