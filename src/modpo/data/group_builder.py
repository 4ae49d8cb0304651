"""Rows of one prompt into a group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

import numpy as np

from modpo.base.errors import InputError, IntegrityError, Problem
from modpo.data.preference_row import PreferenceRow
from modpo.data.prompt_group import Pair, PromptGroup, Text
from modpo.data.row_reader import LeftOut, RowReader

TALLIES = ("responses", "pairs", "identical_pairs")  # distinct ones; of all label sets; those that were dropped


class GroupBuilder:
    """Rows of one prompt: a response that stands in several of them is one response."""

    def __init__(self, where: str, *, several_raters: bool = False) -> None:
        """`several_raters`: two values of a column for one response are two opinions, of which the mean is kept."""
        self.where = where
        self._several_raters = several_raters
        self.rows: list[PreferenceRow] = []
        self.responses: dict[str, Text] = {}  # by content
        self.pairs: dict[str, list[Pair]] = {}  # by label set, in the order of the rows; as often as rows give them
        self.identical_pairs = 0
        self._columns: dict[str, dict[int, list[float]]] = {}  # by name and response, the values of its rows

    def add(self, row: PreferenceRow, where: str) -> None:
        """Take in one row.

        Raises:
            InputError: a column gives one response two values.
            IntegrityError: the row has another prompt.
        """
        if self.rows and (row.prompt, row.template_kwargs) != (self.rows[0].prompt, self.rows[0].template_kwargs):
            raise IntegrityError(f"{where}: two prompts share a hash, or the file changed; fix: start again")
        self.rows.append(row)
        contents = [text if isinstance(text, str) else json.dumps(text) for text in row.responses]
        for content, text in zip(contents, row.responses, strict=True):
            self.responses.setdefault(content, text)
        places = {content: place for place, content in enumerate(self.responses)}
        slots = [places[content] for content in contents]
        for name, values in row.columns.items():
            self._add_column(name, zip(slots, values, strict=True), where)
        for label_set, pairs in row.pairs.items():
            for chosen, rejected in pairs:
                if slots[chosen] == slots[rejected]:
                    self.identical_pairs += 1
                else:
                    self.pairs.setdefault(label_set, []).append((slots[chosen], slots[rejected]))

    @property
    def tallies(self) -> tuple[int, int, int]:
        """How many of each of `TALLIES` there are."""
        return len(self.responses), sum(map(len, self.pairs.values())), self.identical_pairs

    def _add_column(self, name: str, values: Iterable[tuple[int, float | None]], where: str) -> None:
        column = self._columns.setdefault(name, {})
        for slot, value in values:
            if value is None:
                continue
            known = column.setdefault(slot, [])
            if known and known[0] != value and not self._several_raters:
                problem = f"one response has {value:g} here and {known[0]:g} before, for the same prompt"
                raise InputError(Problem(where, name, problem, "keep one value, or remove the column"))
            known.append(value)

    def group(self) -> PromptGroup:
        """The group; what its rows hold beyond their columns is taken from the first."""
        count = len(self.responses)
        columns = {
            name: tuple(_mean(column[slot]) if slot in column else None for slot in range(count))
            for name, column in self._columns.items()
        }
        pairs = {label_set: tuple(found) for label_set, found in self.pairs.items()}
        first = self.rows[0]
        responses = tuple(self.responses.values())
        return PromptGroup(
            first.prompt, responses, pairs, columns, first.fields, self.where, template_kwargs=first.template_kwargs
        )


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else mean(values)


def build_group(reader: RowReader, numbers: Sequence[int]) -> GroupBuilder:
    builder = GroupBuilder(reader.rows.where(numbers[0]), several_raters=reader.several_raters)
    for number in numbers:
        if not isinstance(row := reader.read(number), LeftOut):
            builder.add(row, reader.rows.where(number))
    return builder


def prompt_key(row: PreferenceRow) -> int:
    """What makes two prompts one group: the same text, and the same variables of the chat template."""
    return content_key([row.prompt, row.template_kwargs] if row.template_kwargs else row.prompt)


def content_key(content: Any) -> int:
    """64 bits of a hash of the content: the same in every process."""
    return int.from_bytes(_digest(json.dumps(content).encode()), "little")


def content_keys(written: Iterable[bytes]) -> np.ndarray:
    """`content_key` of each content, uint64, of contents as `json.dumps` writes them."""
    return np.frombuffer(b"".join(map(_digest, written)), dtype="<u8")


def _digest(written: bytes) -> bytes:
    return hashlib.blake2b(written, digest_size=8).digest()
