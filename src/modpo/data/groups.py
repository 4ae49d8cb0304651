"""Rows into prompt groups: rows that share a prompt become one group, built when it is asked for.

Of a row its number is kept, of a group a hash of its prompt and a few counts; the texts stay in the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, overload

import numpy as np

from modpo.base.errors import InputError, IntegrityError, Problem
from modpo.base.progress import working
from modpo.data.formats import PROMPTS, RULES, find_layout, is_function
from modpo.data.group_builder import build_group, content_keys, prompt_key
from modpo.data.group_index import Index, check_split_prompts, count_merged, index_rows, scan_rows
from modpo.data.kept_index import Found, KeptIndex
from modpo.data.prompt_group import PromptGroup
from modpo.data.row_reader import RowReader
from modpo.data.rows import Rows


class PromptGroups(Sequence[PromptGroup]):
    """Prompt groups, in the order in which their prompts first occur. Made by `group_rows`.

    Attributes:
        conversational: whether the texts are lists of messages.
        columns: the names of the numbers that every response is known to have.
        template_kwargs: variables of the chat template that are said for all rows.
        warnings: what a user should know of the file, one line each; a selection still speaks of all of it.
    """

    def __init__(self, reader: RowReader, index: Index, numbers: np.ndarray, warnings: Sequence[str]) -> None:
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
            builder = build_group(self._reader, self._index.rows_of(number))
        except InputError as error:
            raise self._changed() from error
        if not builder.rows or prompt_key(builder.rows[0]) != int(self._index.keys[number]):
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
        """Groups, rows, responses, pairs, identical_pairs (dropped), duplicate_rows (whose pairs count again)."""
        totals = {name: int(tally[self._numbers].sum()) for name, tally in self._index.tallies.items()}
        return {"groups": len(self), **totals}

    @property
    def response_counts(self) -> np.ndarray:
        """Distinct responses to each prompt, (groups,)."""
        counts: np.ndarray = self._index.tallies["responses"][self._numbers]
        return counts

    @cached_property
    def label_sets(self) -> dict[str, int]:
        """How many pairs each label set has, by its name, in the order in which they first occur."""
        groups, label_sets, pairs = self._index.labelled.T
        places = np.full(len(self._index.keys), -1)
        places[self._numbers[::-1]] = np.arange(len(self))[::-1]
        mine = places[groups] >= 0
        occurs = places[groups] * len(groups) + np.arange(len(groups))  # the groups' order, then the rows'
        first = np.full(len(self._index.label_sets), np.iinfo(occurs.dtype).max)
        np.minimum.at(first, label_sets[mine], occurs[mine])
        often = np.bincount(self._numbers, minlength=len(places))[groups]
        totals = np.bincount(label_sets, weights=often * pairs, minlength=len(first)).astype(int)
        order = np.argsort(first, kind="stable").tolist()
        return {self._index.label_sets[i]: int(totals[i]) for i in order if totals[i]}

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
        draws = _draws(self.keys.tobytes(), seed)
        held_out = np.zeros(len(self), dtype=bool)
        held_out[np.argsort(draws, kind="stable")[:n]] = True
        return self.select(np.flatnonzero(~held_out)), self.select(np.flatnonzero(held_out))


@lru_cache(maxsize=2)
def _draws(keys: bytes, seed: int) -> np.ndarray:
    """A number for each prompt, that a seed draws."""
    return content_keys(b"[%d, %d]" % (seed, key) for key in np.frombuffer(keys, dtype=np.uint64).tolist())


def overlap(a: PromptGroups, b: PromptGroups) -> int:
    """How many prompts stand in both."""
    return len(np.intersect1d(a.keys, b.keys))


@working("rows, grouped by prompt")
def group_rows(
    rows: Rows,
    *,
    format: str = "preference",
    columns: Sequence[str] = (),
    unanswered: bool = False,
    skip_empty: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
    cache_dir: Path | None = None,
    keep: bool = False,
) -> PromptGroups:
    """Check every row once, and group the rows by prompt.

    Args:
        rows: from `modpo.data.rows`.
        format: how a row is laid out, see `modpo.data.formats.find_layout`.
        columns: numbers that every response must have.
        unanswered: whether a row may have no response where a function lays it out: it is measured on, or answered.
        skip_empty: whether rows with a blank prompt or response are left out, and counted.
        template_kwargs: variables of the chat template for all rows; a row's own go before them.
        cache_dir: where what was found of the same rows before is looked up. keep: and written.

    Raises:
        InputError: up to 20 bad rows at once; no rows; no pair left; two values for one response in a column; what
            rows without `prompt` begin with is no prompt, see `implicit_prompts`.
    """
    layout = find_layout(format, where=rows.name)
    answered = format != PROMPTS and not (unanswered and is_function(format))
    reader = RowReader(rows, layout, tuple(columns), answered, skip_empty, dict(template_kwargs or {}))
    find = partial(_checked, reader)
    index, counted = find() if cache_dir is None else KeptIndex(reader, cache_dir, keep).read_or_find(find)
    groups = PromptGroups(reader, index, np.arange(len(index.keys)), _warnings(index, counted))
    if groups.counts["identical_pairs"] and not groups.counts["pairs"]:
        problem = f"no pair is left: in all {groups.counts['identical_pairs']} chosen equals rejected"
        raise InputError(Problem(rows.name, "chosen", problem, "give pairs of two different responses"))
    return groups


def _checked(reader: RowReader) -> Found:
    scan = scan_rows(reader)
    if not len(scan.kept):
        count = len(reader.rows)
        problem = f"holds nothing to learn from: all {count} rows are left out" if count else "holds no rows"
        raise InputError(Problem(reader.rows.name, "", problem, "give at least one prompt with its responses"))
    index = index_rows(scan)
    count_merged(reader, index)
    check_split_prompts(reader, index, scan.split)
    return index, scan.counted


def _warnings(index: Index, counted: Mapping[str, int]) -> list[str]:
    pairless = int((index.tallies["pairs"] == 0).sum()) if index.tallies["pairs"].any() else 0
    found = {
        "pairs dropped: chosen equals rejected": int(index.tallies["identical_pairs"].sum()),
        "rows repeat an earlier row: their pairs count again": int(index.tallies["duplicate_rows"].sum()),
        **counted,
        "prompts have no pair": pairless,
    }
    return [f"{count} {what}" for what, count in found.items() if count]
