"""Rows into prompt groups: rows that share a prompt become one group, built when it is asked for.

Of a row its number is kept, of a group a hash of its prompt and a few counts; the texts stay in the file.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean
from typing import Any, overload

import numpy as np

from modpo.base.errors import InputError, IntegrityError, Problem, Problems
from modpo.data.formats import PROMPTS, RULES, SEVERAL_RATERS, Layout, find_layout, is_function
from modpo.data.preference_row import PreferenceRow, read_preference_row
from modpo.data.prompt_group import Pair, PromptGroup, Text
from modpo.data.rows import Row, Rows

TALLIES = ("responses", "pairs", "identical_pairs")  # distinct ones, of all label sets; those that were dropped


class PromptGroups(Sequence[PromptGroup]):
    """Prompt groups, in the order in which their prompts first occur. Made by `group_rows`.

    Attributes:
        conversational: whether the texts are lists of messages.
        columns: the names of the numbers that every response is known to have.
        template_kwargs: variables of the chat template that are said for all rows.
        warnings: what a user should know of the file, one line each; a selection still speaks of all of it.
    """

    def __init__(self, reader: _Reader, index: _Index, numbers: np.ndarray, warnings: Sequence[str]) -> None:
        self._reader = reader
        self._index = index
        self._numbers = numbers
        self.conversational = index.conversational
        self.columns = reader.columns
        self.template_kwargs = reader.template_kwargs
        self.warnings = list(warnings)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> PromptGroup: ...

    @overload
    def __getitem__(self, index: slice) -> PromptGroups: ...

    def __getitem__(self, index: int | slice) -> PromptGroup | PromptGroups:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        number = int(self._numbers[index])
        try:
            builder = _build(self._reader, self._index.rows_of(number))
        except InputError as error:
            raise self._changed() from error
        if not builder.rows or _prompt_key(builder.rows[0]) != int(self._index.keys[number]):
            raise self._changed()
        group = builder.group()
        return replace(group, template_kwargs={**self.template_kwargs, **group.template_kwargs})

    @property
    def source(self) -> str:
        """Where the rows come from, as messages name it."""
        return self._reader.rows.name

    def _changed(self) -> IntegrityError:
        return IntegrityError(f"{self._reader.rows.name}: changed since it was read; fix: start again")

    @property
    def counts(self) -> dict[str, int]:
        """In this order: groups, rows, responses, pairs, identical_pairs (dropped), duplicate_rows (counted once)."""
        totals = {name: int(tally[self._numbers].sum()) for name, tally in self._index.tallies.items()}
        return {"groups": len(self), **totals}

    @cached_property
    def label_sets(self) -> dict[str, int]:
        """How many pairs each label set has, by its name. Reads the rows."""
        totals: Counter[str] = Counter()
        for group in self:
            totals.update({label_set: len(pairs) for label_set, pairs in group.pairs.items()})
        return dict(totals)

    @property
    def keys(self) -> np.ndarray:
        """A 64-bit hash of each prompt, (groups,): the same for the same prompt in whatever file."""
        keys: np.ndarray = self._index.keys[self._numbers]
        return keys

    @property
    def fingerprint(self) -> str:
        """sha256 of the content: the rows, the rules they are read by, and which groups these are."""
        settings = [self._reader.rows.fingerprint, self._reader.layout.identity, RULES]
        settings += [self.template_kwargs] if self.template_kwargs else []
        return hashlib.sha256(json.dumps(settings).encode() + self.keys.tobytes()).hexdigest()

    def select(self, indices: Sequence[int] | np.ndarray) -> PromptGroups:
        """The groups at these indices, in this order. Nothing is read or copied."""
        numbers = self._numbers[np.asarray(indices, dtype=np.int64)]
        return PromptGroups(self._reader, self._index, numbers, self.warnings)

    def split_held_out(self, n: int, seed: int) -> tuple[PromptGroups, PromptGroups]:
        """(train, held_out): n whole prompts held out, drawn by a hash of seed and prompt.

        The draw depends on the prompts and the seed, not on the file's order. Both parts keep that order.

        Raises:
            InputError: fewer than n + 1 prompts.
        """
        if not 0 <= n < len(self):
            problem = f"{n} prompts cannot be held out of {len(self)}"
            fix = f"hold out 0 to {len(self) - 1}, or give more prompts"
            raise InputError(Problem(self._reader.rows.name, "eval_prompts", problem, fix))
        draws = np.array([_key([seed, int(key)]) for key in self.keys], dtype=np.uint64)
        held_out = np.zeros(len(self), dtype=bool)
        held_out[np.argsort(draws, kind="stable")[:n]] = True
        return self.select(np.flatnonzero(~held_out)), self.select(np.flatnonzero(held_out))


def overlap(a: PromptGroups, b: PromptGroups) -> int:
    """How many prompts stand in both."""
    return len(np.intersect1d(a.keys, b.keys))


def group_rows(
    rows: Rows,
    *,
    format: str = "preference",
    columns: Sequence[str] = (),
    unanswered: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> PromptGroups:
    """Check every row once, and group the rows by prompt.

    Args:
        rows: from `modpo.data.rows`.
        format: how a row is laid out, see `modpo.data.formats.find_layout`.
        columns: numbers that every response must have.
        unanswered: whether a row may have no response where a function lays it out: it is measured on, or answered.
        template_kwargs: variables of the chat template for all rows; a row's own go before them.

    Raises:
        InputError: up to 20 bad rows at once; no rows; no pair left; two values for one response in a column.
    """
    layout = find_layout(format, where=rows.name)
    answered = format != PROMPTS and not (unanswered and is_function(format))
    reader = _Reader(rows, layout, tuple(columns), answered, dict(template_kwargs or {}))
    scanned, conversational = _scan(reader)
    if not len(scanned):
        problem = "holds no rows" if not rows else f"holds nothing to learn from: all {len(rows)} rows are left out"
        raise InputError(Problem(rows.name, "", problem, "give at least one prompt with its responses"))
    index = _index(scanned, conversational=conversational)
    _count_merged(reader, index)
    groups = PromptGroups(reader, index, np.arange(len(index.keys)), _warnings(index, len(rows) - len(scanned)))
    if groups.counts["identical_pairs"] and not groups.counts["pairs"]:
        problem = f"no pair is left: in all {groups.counts['identical_pairs']} chosen equals rejected"
        raise InputError(Problem(rows.name, "chosen", problem, "give pairs of two different responses"))
    return groups


# --- reading rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reader:
    """Rows and how to read one."""

    rows: Rows
    layout: Layout
    columns: tuple[str, ...]
    answered: bool  # whether every row must have a response
    template_kwargs: dict[str, Any]  # of all rows

    @property
    def several_raters(self) -> bool:
        return self.layout.name in SEVERAL_RATERS

    def read(self, number: int) -> PreferenceRow | None:
        """A checked row; None if the format leaves it out."""
        where = self.rows.where(number)
        try:
            return self._checked(self.rows[number], where)
        except RecursionError:  # parsed it was, but what is wrong with it cannot be shown
            fix = "give texts, lists of messages and numbers"
            raise InputError(Problem(where, "", "is nested too deeply", fix)) from None

    def _checked(self, row: Row, where: str) -> PreferenceRow | None:
        try:
            laid_out = self.layout.read(row)
        except InputError as error:  # a format knows the row, not where it stands
            raise InputError([replace(problem, where=where) for problem in error.problems]) from None
        if laid_out is None:
            return None
        read = read_preference_row(laid_out, where, self.columns)
        if self.answered and not read.responses:
            fix = f"give at least one, or read the file as `format: {PROMPTS}`"
            raise InputError(Problem(where, "responses", "there is none", fix))
        return read


def _scan(reader: _Reader) -> tuple[np.ndarray, bool]:
    """One pass over the rows: a few numbers of each that is kept, (rows, 6), and whether they are conversational.

    The columns are the row's number, a hash of its prompt, a hash of all that it says, and its `TALLIES`.
    """
    found, problems = array("Q"), Problems()
    conversational: bool | None = None  # None: no row so far
    for number in range(len(reader.rows)):
        with problems:
            row, where = reader.read(number), reader.rows.where(number)
            if row is None:
                continue
            if conversational is None:
                conversational = row.conversational
            if row.conversational != conversational:
                kinds = ("a conversation", "plain text") if row.conversational else ("plain text", "a conversation")
                problem = f"is {kinds[0]}, but the rows before are {kinds[1]}"
                raise InputError(Problem(where, "prompt", problem, "use one layout throughout the file"))
            builder = _GroupBuilder(where, several_raters=reader.several_raters)
            builder.add(row, where)
            said = [row.prompt, row.responses, row.pairs, *([row.template_kwargs] if row.template_kwargs else [])]
            found.extend((number, _prompt_key(row), _key(said), *builder.tallies))
    problems.raise_any()
    return np.asarray(found).reshape(-1, 3 + len(TALLIES)), bool(conversational)


# --- grouping ---------------------------------------------------------------------------------------------


class _GroupBuilder:
    """Rows of one prompt: a response that stands in several of them is one response."""

    def __init__(self, where: str, *, several_raters: bool = False) -> None:
        """`several_raters`: two values of a column for one response are two opinions, of which the mean is kept."""
        self.where = where
        self._several_raters = several_raters
        self.rows: list[PreferenceRow] = []
        self.responses: dict[str, Text] = {}  # by content
        self.pairs: dict[str, dict[Pair, None]] = {}  # by label set; distinct, in order
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
                    self.pairs.setdefault(label_set, {})[slots[chosen], slots[rejected]] = None

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
            name: tuple(mean(column[slot]) if slot in column else None for slot in range(count))
            for name, column in self._columns.items()
        }
        pairs = {label_set: tuple(found) for label_set, found in self.pairs.items()}
        first = self.rows[0]
        responses = tuple(self.responses.values())
        return PromptGroup(
            first.prompt, responses, pairs, columns, first.fields, self.where, template_kwargs=first.template_kwargs
        )


@dataclass(frozen=True)
class _Index:
    """Which rows make which group."""

    rows: np.ndarray  # (rows,) row numbers, those of a group together and in the file's order
    bounds: np.ndarray  # (groups + 1,) where each group's rows begin
    keys: np.ndarray  # (groups,) hash of the prompt
    tallies: dict[str, np.ndarray]  # each (groups,)
    conversational: bool

    def rows_of(self, group: int) -> list[int]:
        numbers: list[int] = self.rows[self.bounds[group] : self.bounds[group + 1]].tolist()
        return numbers


def _index(scanned: np.ndarray, *, conversational: bool) -> _Index:
    """Groups in the order in which their prompts first occur, from what `_scan` found."""
    numbers, prompts, contents = scanned[:, :3].T
    keys, first_rows, group_of_row = np.unique(prompts, return_index=True, return_inverse=True)
    by_first_row = np.argsort(first_rows)
    group_of_row = np.argsort(by_first_row)[group_of_row]
    order = np.argsort(group_of_row, kind="stable")
    sizes = np.bincount(group_of_row)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    repeats = np.ones(len(numbers), dtype=np.int64)
    repeats[np.unique(contents, return_index=True)[1]] = 0
    counted = dict(zip(TALLIES, scanned[:, 3:].T.astype(np.int64), strict=True)) | {"duplicate_rows": repeats}
    tallies = {name: np.add.reduceat(counts[order], bounds[:-1]) for name, counts in counted.items()}
    return _Index(numbers[order], bounds, keys[by_first_row], {"rows": sizes, **tallies}, conversational)


def _count_merged(reader: _Reader, index: _Index) -> None:
    """Build each group of several rows once: count what they share, find values that contradict others."""
    problems = Problems()
    for number in np.flatnonzero(index.tallies["rows"] > 1).tolist():
        with problems:
            builder = _build(reader, index.rows_of(number))
            index.tallies["responses"][number], index.tallies["pairs"][number], _ = builder.tallies
    problems.raise_any()


def _build(reader: _Reader, numbers: Sequence[int]) -> _GroupBuilder:
    builder = _GroupBuilder(reader.rows.where(numbers[0]), several_raters=reader.several_raters)
    for number in numbers:
        if (row := reader.read(number)) is not None:
            builder.add(row, reader.rows.where(number))
    return builder


def _prompt_key(row: PreferenceRow) -> int:
    """What makes two prompts one group: the same text, and the same variables of the chat template."""
    return _key([row.prompt, row.template_kwargs] if row.template_kwargs else row.prompt)


def _key(content: Any) -> int:
    """64 bits of a hash of the content: the same in every process."""
    return int.from_bytes(hashlib.blake2b(json.dumps(content).encode(), digest_size=8).digest(), "little")


def _warnings(index: _Index, left_out: int) -> list[str]:
    pairless = int((index.tallies["pairs"] == 0).sum()) if index.tallies["pairs"].any() else 0
    found = {
        "pairs dropped: chosen equals rejected": int(index.tallies["identical_pairs"].sum()),
        "rows repeat an earlier row: each pair counts once": int(index.tallies["duplicate_rows"].sum()),
        "rows left out: they hold nothing to learn from": left_out,
        "prompts have no pair": pairless,
    }
    return [f"{count} {what}" for what, count in found.items() if count]
