"""English text into sentences that know where they stand."""

from __future__ import annotations

import re
from dataclasses import dataclass

# What ends in a period and ends no sentence, though a capital letter or a digit follows.
TITLES = ("Mr", "Mrs", "Ms", "Dr", "Prof", "Gen", "Col", "Lt", "Sgt", "Capt", "Gov", "Sen", "Rep", "Rev", "Jr", "Sr")
ABBREVIATIONS = (
    *TITLES,
    "St",
    "Mt",
    "Ft",
    "No",
    "Nos",
    "Vol",
    "vs",
    "v",
    "ca",
    "c",
    "approx",
    "feat",
    "ft",
    "e.g",
    "i.e",
)

_BREAK = re.compile(r"""[.!?]["'”’)\]]*\s+(?=["'“‘(\[]*[A-Z0-9])""")
_LAST_WORD = re.compile(r"([\w.]+)\.[^\w.]*$")
_INITIALS = re.compile(r"[A-Z](\.[A-Z])*")


@dataclass(frozen=True)
class Sentence:
    """The characters of a text from `start` up to, not including, `end`; no white space around them."""

    text: str
    start: int
    end: int


def split_sentences(text: str) -> list[Sentence]:
    """The sentences of a text, in order; an abbreviation or a person's initial ends none."""
    breaks = [match.end() for match in _BREAK.finditer(text) if not _is_abbreviated(text[: match.end()])]
    found = []
    for begin, end in zip([0, *breaks], [*breaks, len(text)], strict=True):
        words = text[begin:end].strip()
        if words:
            start = text.index(words, begin)
            found.append(Sentence(words, start, start + len(words)))
    return found


def _is_abbreviated(text: str) -> bool:
    """Whether the text's last period belongs to its last word."""
    last = _LAST_WORD.search(text)
    return last is not None and (last[1] in ABBREVIATIONS or _INITIALS.fullmatch(last[1]) is not None)
