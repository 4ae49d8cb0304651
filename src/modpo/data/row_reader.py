"""One row of a source: laid out, checked, or left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from modpo.base.errors import InputError, Problem
from modpo.data.formats import PROMPTS, SEVERAL_RATERS, Layout
from modpo.data.preference_row import BlankTextError, PreferenceRow, read_preference_row
from modpo.data.rows import Row, Rows


class LeftOut(StrEnum):
    """Why a row is left out."""

    BY_FORMAT = "rows left out: they hold nothing to learn from"
    BLANK = "rows left out: their prompt or a response is blank (`skip_empty`)"


@dataclass(frozen=True)
class RowReader:
    """Rows and how to read one."""

    rows: Rows
    layout: Layout
    columns: tuple[str, ...]
    answered: bool  # whether every row must have a response
    skip_empty: bool  # whether a row with a blank text is left out
    template_kwargs: dict[str, Any]  # of all rows

    @property
    def several_raters(self) -> bool:
        return self.layout.name in SEVERAL_RATERS

    def read(self, number: int) -> PreferenceRow | LeftOut:
        """A checked row, or why it is left out."""
        where = self.rows.where(number)
        try:
            return self._checked(self.rows[number], where)
        except RecursionError:  # parsed it was, but what is wrong with it cannot be shown
            fix = "give texts, lists of messages and numbers"
            raise InputError(Problem(where, "", "is nested too deeply", fix)) from None

    def _checked(self, row: Row, where: str) -> PreferenceRow | LeftOut:
        try:
            laid_out = self.layout.read(row)
        except InputError as error:  # a format knows the row, not where it stands
            raise InputError([replace(problem, where=where) for problem in error.problems]) from None
        if laid_out is None:
            return LeftOut.BY_FORMAT
        try:
            read = read_preference_row(laid_out, where, self.columns)
        except BlankTextError:
            if self.skip_empty:
                return LeftOut.BLANK
            raise
        if self.answered and not read.responses:
            fix = f"give at least one, or read the file as `format: {PROMPTS}`"
            raise InputError(Problem(where, "responses", "there is none", fix))
        return read
