"""Which values a key of the experiment file may have: its annotation says so, as in

    beta: Annotated[float, above(0)] = 0.1

The checks (`modpo.experiment.rules`) follow from the annotation, and the tables of docs/experiment.md
(`docs/reference.py`) from the default and the text that stands below the field.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, of Linux and most other systems
LARGEST_SEED = 2**32 - 1
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Rule:
    """Which values a key may have.

    Attributes:
        accepts: whether a value of the annotated type may stand there; it is not asked about null.
        fix: what to do about one that may not.
        problem: what is wrong then; `{}` is the value.
    """

    accepts: Callable[[Any], Any]
    fix: str
    problem: str = "is {!r:.80}"


def rules(section: Any) -> Iterator[tuple[str, list[Rule]]]:
    """The keys of a section, which is a dataclass, and their rules."""
    kinds = get_type_hints(type(section), include_extras=True)
    for field in dataclasses.fields(section):
        yield field.name, [extra for extra in get_args(kinds[field.name])[1:] if isinstance(extra, Rule)]


def that_is(expected: str, accepts: Callable[[Any], bool]) -> Rule:
    """A rule whose fix is to give a value that is as expected."""
    return Rule(accepts, f"give a value that is {expected}")


def above(low: float) -> Rule:
    """A number greater than `low`."""
    return that_is(f"above {low}", lambda value: value > low)


def at_least(low: float) -> Rule:
    """A number that is `low` or more."""
    return that_is(f"at least {low}", lambda value: value >= low)


def between(low: float, high: float) -> Rule:
    """A number from `low` to `high`, both included."""
    return that_is(f"from {low} to {high}", lambda value: low <= value <= high)


def one_of(choices: Collection[str]) -> Rule:
    """One of several names."""
    return Rule(lambda value: value in choices, f"use one of: {', '.join(choices)}")


def not_empty(fix: str) -> Rule:
    """A list with items, or a text that is more than blanks."""
    return Rule(lambda value: value.strip() if isinstance(value, str) else value, fix, "is empty")


def _is_path(text: str) -> bool:
    """Whether a text can name a file or a model: not blank, no NUL, no half of a character, nothing too long."""
    try:
        size, parts = len(os.fsencode(text)), [len(os.fsencode(part)) for part in re.split(r"[/\\]", text)]
    except UnicodeEncodeError:
        return False
    return bool(text.strip()) and "\0" not in text and size < LONGEST_PATH and max(parts) <= LONGEST_NAME


NAMED = that_is("a name or path", _is_path)
FOLDER_OR_HUB = Rule(_is_path, "give a local folder or a name on the Hub")
SEED = between(0, LARGEST_SEED)
