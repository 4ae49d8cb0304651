"""One pass over the rows, and which of them make which group."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from modpo.base.errors import InputError, Problem, Problems
from modpo.data.group_builder import TALLIES, GroupBuilder, build_group, content_key, prompt_key
from modpo.data.implicit_prompts import OWN_FIELD, is_shared_by_strangers, looks_like_prompt
from modpo.data.row_reader import LeftOut, RowReader

WIDTH = 3 + len(TALLIES)  # numbers of a row


@dataclass
class Scan:
    """What one pass over the rows finds."""

    kept: np.ndarray  # (rows, 6): a row's number, a hash of its prompt, a hash of all that it says, its `TALLIES`
    label_sets: list[str]  # their names
    labelled: np.ndarray  # (labels, 3): which row of `kept` has pairs of which label set, and how many
    conversational: bool
    split: set[int]  # hashes of prompts that are what two texts begin with
    counted: Counter[str]  # rows that a user should know of, by what is the matter with them


def scan_rows(reader: RowReader) -> Scan:
    """One pass over the rows: a few numbers of each that is kept."""
    found, problems, split, counted = array("Q"), Problems(), set[int](), Counter[str]()
    labelled, label_sets = array("q"), dict[str, int]()
    conversational: bool | None = None  # None: no row so far
    for number in range(len(reader.rows)):
        with problems:
            row, where = reader.read(number), reader.rows.where(number)
            if isinstance(row, LeftOut):
                counted[row] += 1
                continue
            if conversational is None:
                conversational = row.conversational
            if row.conversational != conversational:
                kinds = ("a conversation", "plain text") if row.conversational else ("plain text", "a conversation")
                problem = f"is {kinds[0]}, but the rows before are {kinds[1]}"
                raise InputError(Problem(where, "prompt", problem, "use one layout throughout the file"))
            builder = GroupBuilder(where, several_raters=reader.several_raters)
            builder.add(row, where)
            prompt = prompt_key(row)
            said = [row.prompt, row.responses, row.pairs, *([row.template_kwargs] if row.template_kwargs else [])]
            for name, pairs in builder.pairs.items():
                place = len(found) // WIDTH
                labelled.extend((place, label_sets.setdefault(name, len(label_sets)), len(pairs)))
            found.extend((number, prompt, content_key(said), *builder.tallies))
            split.update({prompt} if row.split and not row.conversational else ())
            counted.update(row.notes)
    problems.raise_any()
    kept, labels = np.asarray(found).reshape(-1, WIDTH), np.asarray(labelled).reshape(-1, 3)
    return Scan(kept, list(label_sets), labels, bool(conversational), split, counted)


@dataclass(frozen=True)
class Index:
    """Which rows make which group."""

    rows: np.ndarray  # (rows,) row numbers, those of a group together and in the file's order
    bounds: np.ndarray  # (groups + 1,) where each group's rows begin
    keys: np.ndarray  # (groups,) hash of the prompt
    tallies: dict[str, np.ndarray]  # each (groups,)
    label_sets: list[str]  # their names
    labelled: np.ndarray  # (labels, 3): which group has pairs of which label set, and how many; may repeat
    conversational: bool

    def rows_of(self, group: int) -> list[int]:
        numbers: list[int] = self.rows[self.bounds[group] : self.bounds[group + 1]].tolist()
        return numbers


def index_rows(scan: Scan) -> Index:
    """Groups in the order in which their prompts first occur."""
    scanned = scan.kept
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
    labelled = np.column_stack([group_of_row[scan.labelled[:, 0]], scan.labelled[:, 1:]])
    return Index(
        rows=numbers[order],
        bounds=bounds,
        keys=keys[by_first_row],
        tallies={"rows": sizes, **tallies},
        label_sets=scan.label_sets,
        labelled=labelled,
        conversational=scan.conversational,
    )


def count_merged(reader: RowReader, index: Index) -> None:
    """Build each group of several rows once: count what they share, find values that contradict others."""
    problems = Problems()
    for number in np.flatnonzero(index.tallies["rows"] > 1).tolist():
        with problems:
            builder = build_group(reader, index.rows_of(number))
            index.tallies["responses"][number], index.tallies["pairs"][number], _ = builder.tallies
    problems.raise_any()


def check_split_prompts(reader: RowReader, index: Index, split: Container[int]) -> None:
    """Refuse what rows without `prompt` begin with, where it is none."""
    if not split:
        return
    tallies = index.tallies
    differing = tallies["rows"] - tallies["duplicate_rows"]
    for number in np.flatnonzero(is_shared_by_strangers(differing, tallies["responses"])).tolist():
        if int(index.keys[number]) not in split:
            continue
        group = build_group(reader, index.rows_of(number)).group()
        if isinstance(group.prompt, str) and not looks_like_prompt(group.prompt):
            problem = f"missing, and what {differing[number]} rows with different answers begin with is none: "
            raise InputError(Problem(group.where, "prompt", f"{problem}{group.prompt!r}", OWN_FIELD))
