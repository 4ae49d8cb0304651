"""Signs of life: whatever is running says so at least every few seconds, also from within one long call.

    with Activity("reading the model"): ...

Activities lie in one another. While any runs, a log gets a line whenever nothing was said for `SECONDS_BETWEEN_LINES`:
of the innermost, and after it what is known of those around it. A terminal shows them all, live. Both are drawn by a
thread of their own, which ends with the activities; a forked process has none.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

SECONDS_BETWEEN_LINES = 12.0  # below the 15 that nothing may take in silence: a call can hold Python for a while
SECONDS_BEFORE_ANOTHER_TRY = 1.0  # to say how far it is
REDRAWN = 4  # times a second, on a terminal
DUMB = ("", "dumb", "unknown")  # terminals that cannot draw over a line


class Activity:
    """Something that runs, with a name. `learns_from` sees those within it end.

    Args:
        live: a terminal shows it and those around it. Of others it shows nothing, so that a library's own bars can.
    """

    total: int | None = None  # of a counted one
    done: float = 0

    def __init__(self, label: str, *, live: bool = False) -> None:
        self.label, self.live = label, live
        self.started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started

    def __enter__(self) -> Self:
        HEARTBEAT.begin(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        HEARTBEAT.end(self)

    def status(self) -> str:
        """How far it is, in words."""
        return f"{duration(self.elapsed)} so far"

    def outlook(self) -> str:
        """What to say of it after the status of one within it; empty: nothing."""
        return ""

    def learns_from(self, inner: Activity) -> None:
        """One within it, at whatever depth, has ended."""


class Heartbeat:
    """The activities of this process and the thread that tells of them."""

    def __init__(self, *, silent: bool = False) -> None:
        self.running: list[Activity] = []  # from the outermost to the innermost
        self._lock = threading.RLock()  # one line at a time, and none of what has ended
        self._last_line = 0.0
        self._stop: threading.Event | None = None
        self._live: Live | None = None
        self._silent = silent

    def write(self, line: str) -> None:
        """A whole line on stderr."""
        self._write(line, sys.stderr)

    def heard(self) -> None:
        """Somebody else has written a line: ours can wait."""
        self._last_line = time.monotonic()

    def begin(self, activity: Activity) -> None:
        """It runs, within those that run already."""
        with self._lock:
            self.running.append(activity)
        if not self._silent:
            self._start(activity)

    def within(self, activity: Activity) -> list[Activity]:
        """What runs within it, from the outermost to the innermost."""
        running = list(self.running)  # which another thread may read at any time
        return running[running.index(activity) + 1 :] if activity in running else []

    def end(self, activity: Activity) -> None:
        """It has ended, and with it what lies within."""
        with self._lock:
            if activity not in self.running:
                return
            del self.running[self.running.index(activity) :]
            for outer in self.running:
                outer.learns_from(activity)
        self._end()

    def beat(self, stream: TextIO) -> None:
        """Write a line if it is time for one."""
        with self._lock:
            if self.running and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
                *around, innermost = self.running
                known = filter(None, (outer.outlook() for outer in reversed(around)))
                self._write("; ".join([f"{innermost.label}: {innermost.status()}", *known]), stream)

    def _write(self, line: str, stream: TextIO) -> None:
        with self._lock:
            self._last_line = time.monotonic()
            stream.write(f"{line}\n")  # at once: what another thread writes comes before it or behind
            stream.flush()

    def _start(self, activity: Activity) -> None:
        if sys.stderr.isatty() and os.environ.get("TERM", "") not in DUMB:
            if activity.live and self._live is None:
                self._live = _live(self._drawing)
                self._live.start()
            return
        if self._stop is not None:
            return
        self.heard()
        self._stop = threading.Event()
        # The stream of now: within, somebody may divert stderr to silence a library.
        threading.Thread(target=self._watch, args=(self._stop, sys.stderr), name="heartbeat", daemon=True).start()

    def _end(self) -> None:
        if self._live is not None and not any(activity.live for activity in self.running):
            self._live.stop()
            self._live = None
        if self._stop is not None and not self.running:
            self._stop.set()
            self._stop = None

    def _watch(self, stop: threading.Event, stream: TextIO) -> None:
        while not stop.wait(max(self._last_line + SECONDS_BETWEEN_LINES - time.monotonic(), 0.01)):
            try:
                self.beat(stream)
            except Exception:  # whatever one beat meets: the next is tried, a little later
                stop.wait(SECONDS_BEFORE_ANOTHER_TRY)

    def _drawing(self) -> Table:
        """A line for each activity."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        for activity in tuple(self.running):
            counted = activity.total is not None
            bar = ProgressBar(activity.total, min(activity.done, activity.total or 0), width=30) if counted else ""
            table.add_row(Text(activity.label), bar, Text(activity.status()))
        return table


HEARTBEAT = Heartbeat()


def _live(drawing: Any) -> Live:
    from rich.console import Console
    from rich.live import Live

    return Live(
        get_renderable=drawing,
        console=Console(file=sys.stderr),
        refresh_per_second=REDRAWN,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # what goes into a file or a pipe must get there
    )


def _forget() -> None:
    """A forked process has neither the thread nor a say in what its parent does, and writes past the live display."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(sys, name, getattr(stream, "rich_proxied_file", stream))
    HEARTBEAT.__init__(silent=True)  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
