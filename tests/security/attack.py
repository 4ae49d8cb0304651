"""What an attack is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.security.yard import Yard

TERMINAL = "\x1b[2J\x1b]0;owned\x07\r\x9b31mred\u202egnp.exe\u2066\u200f"  # clears, retitles, colours, turns round
DEEP = "[" * 100_000

Build = Callable[[Yard], list[str]]


@dataclass(frozen=True)
class Attack:
    """A hostile input, the exit code that it ends with, and words of the line that says why.

    `build` fills a yard, and gives the command that a victim would run.
    """

    build: Build
    code: int
    words: str


def attack(code: int, words: str = "") -> Callable[[Build], Attack]:
    """Make an attack of the function that builds it."""
    return lambda build: Attack(build, code, words)
