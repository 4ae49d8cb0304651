"""What is running, how far it is, how long it still takes: live on a terminal, a plain line now and then in a log.

All of it on stderr, see `modpo.base.heartbeat`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from modpo.base.heartbeat import HEARTBEAT, SECONDS_BETWEEN_LINES, Activity, duration
from modpo.base.text import printable

__all__ = ["SECONDS_BETWEEN_LINES", "Progress", "duration", "say", "say_once", "working"]

ROUNDING = 1e-6  # parts of an item add up to it but for so much

Item = TypeVar("Item")


def say(text: str) -> None:
    """One line to the person who waits."""
    HEARTBEAT.write(printable(text))


@cache
def say_once(text: str) -> None:
    """One line that this process says no second time, such as what is wrong with a file that every stage reads."""
    say(text)


@contextmanager
def working(label: str, *, live: bool = False) -> Iterator[None]:
    """`with working("reading the model"):` a step that can take long and has nothing to count; also a decorator.

    Args:
        live: see `Activity`.
    """
    with Activity(printable(label), live=live):
        yield


class Progress(Activity):
    """`with Progress("reference log-probs", total=240, unit="prompts") as progress: progress.advance(8)`.

    Args:
        done: of the total, what was there before: nothing is learnt from it of how long the rest takes.
        spans: it ends with the stage that it is in, so that what is left of it is left of the stage.
    """

    total: int

    def __init__(self, label: str, total: int, unit: str = "", done: float = 0, *, spans: bool = False) -> None:
        super().__init__(printable(label), live=True)
        self.total, self.unit, self.done, self.spans = total, unit, done, spans
        self.before, self._since = done, self.started  # what was not worked for here, and when work began
        self._note = ""
        self._part: _Part | None = None

    def advance(self, amount: float = 1) -> None:
        """`amount` more of the total is done."""
        self.done += amount

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each of which is done when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    @contextmanager
    def part(self, amount: float = 1, *, spanned: bool = False) -> Iterator[None]:
        """Within it `amount` of the total is worked at, with progress of its own; one that had none was kept.

        Args:
            spanned: the progress within is that of the whole part, so that it tells how far the part is.
        """
        self._part = part = _Part(amount, spanned)
        try:
            yield
        finally:
            self._part = None
        if not part.worked:
            self.before += amount
            self._since += time.monotonic() - part.started
        self.advance(amount)

    def note(self, text: str) -> None:
        """A few words on how it goes, shown beside the progress."""
        self._note = printable(text)

    def left(self) -> float | None:
        """Seconds that it still takes, by what it has taken; None where that is not known."""
        part, now, begun = self._part, time.monotonic(), 0.0
        done, before, since, total = self.done, self.before, self._since, self.total  # another thread may ask
        taken = now - since
        if part is not None and part.spanned:
            done += part.amount * self._share_within()
        elif part is not None:
            begun, taken = now - part.started, part.started - since
        if done <= before or taken <= 0:
            return None
        pace = taken / (done - before)
        return max((total - done) * pace - (min(begun, part.amount * pace) if part is not None else 0), 0.0)

    def _share_within(self) -> float:
        inner = progress_within(self)
        return min(inner.done / inner.total, 1) if inner is not None and inner.total else 0

    def status(self) -> str:
        note = f", {self._note}" if self._note else ""
        return f"{self._counted()}, {duration(self.elapsed)} so far{self._said_left()}{note}"

    def outlook(self) -> str:
        return f"{self.label}: {self._counted()}{self._said_left()}"

    def _counted(self) -> str:
        return f"{int(self.done + ROUNDING)} of {self.total} {self.unit}".rstrip()

    def _said_left(self) -> str:
        left = self.left()
        return "" if left is None else f", about {duration(left)} left"

    def learns_from(self, inner: Activity) -> None:
        if self._part is not None and isinstance(inner, Progress) and inner.done > inner.before:
            self._part.worked = True

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        super().__exit__(kind, *about)
        if kind is None and (self.done > self.before or not self.total):  # else everything was kept
            say(f"{self.label}: {self._counted()}, took {duration(self.elapsed)}")


def progress_within(activity: Activity) -> Progress | None:
    """The outermost progress within it."""
    return next((inner for inner in HEARTBEAT.within(activity) if isinstance(inner, Progress)), None)


class _Part:
    """A piece of what a progress counts, while it is worked at."""

    def __init__(self, amount: float, spanned: bool) -> None:
        self.amount, self.spanned = amount, spanned
        self.started, self.worked = time.monotonic(), False
