"""What is running, how far it is, how long it still takes.

A live bar on a terminal; elsewhere a plain line now and then, so that a log stays readable. All of it on stderr.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TypeVar

from modpo.base.text import printable

SECONDS_BETWEEN_LINES = 15.0

Item = TypeVar("Item")


def say(text: str) -> None:
    """One line to the person who waits."""
    print(printable(text), file=sys.stderr, flush=True)


@cache
def say_once(text: str) -> None:
    """One line that this process says no second time, such as what is wrong with a file that every stage reads."""
    say(text)


class Progress:
    """`with Progress("reference log-probs", total=240, unit="prompts") as progress: progress.advance(8)`."""

    def __init__(self, label: str, total: int, unit: str = "", done: int = 0) -> None:
        self.label, self.total, self.unit = printable(label), total, unit
        self.done, self.resumed_at = done, done
        self.started = self.last_line = time.monotonic()
        self._live = sys.stderr.isatty()
        self._note = ""

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self.unit, markup=False),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.done)
        return self

    def advance(self, amount: int = 1) -> None:
        """`amount` more of the total is done."""
        self.done += amount
        if self._live:
            self._bar.update(self._task, completed=self.done)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            note = f", {self._note}" if self._note else ""
            say(f"{self.label}: {self.done} of {self.total} {self.unit}, {self._left()} left{note}")

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each of which is done when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    def note(self, text: str) -> None:
        """A few words on how it goes, shown beside the progress."""
        self._note = printable(text)
        if self._live:
            self._bar.update(self._task, description=f"{self.label} ({self._note})")

    def _left(self) -> str:
        elapsed = time.monotonic() - self.started
        rate = (self.done - self.resumed_at) / elapsed if elapsed else 0
        return duration((self.total - self.done) / rate) if rate else "?"

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        if self._live:
            self._bar.stop()
        elif kind is None:
            elapsed = duration(time.monotonic() - self.started)
            say(f"{self.label}: {self.done} of {self.total} {self.unit}, took {elapsed}")


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
