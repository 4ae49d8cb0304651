"""SIGINT and SIGTERM: leave where one stands, or when what must not be torn is done."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR = 2


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to leave. What is finished is safe.

    Attributes:
        exit_code: 128 and the signal's number, as shells count.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Interruption:
    """Whether a signal has come. The second one does not wait."""

    def __init__(self) -> None:
        self._number: int | None = None

    @property
    def asked(self) -> bool:
        """Whether to leave at the next good place."""
        return self._number is not None

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal."""
        if self.asked:
            raise Interrupted(number)
        self._number = number
        with contextlib.suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(STDERR, b"stopping after this step; once more to stop at once\n")

    def leave_if_asked(self) -> None:
        """Raise what was put off."""
        if self._number is not None:
            raise Interrupted(self._number)


@contextmanager
def raised() -> Iterator[None]:
    """Within it a signal raises `Interrupted` at once, wherever the main thread is."""
    with _handled(_raise):
        yield


@contextmanager
def deferred() -> Iterator[Interruption]:
    """Within it a signal is noted, for the block to end early. When it has ended, however it did, that raises."""
    interruption = Interruption()
    with _handled(interruption.note):
        try:
            yield interruption
        finally:
            interruption.leave_if_asked()


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT and SIGTERM go to `handler`, but for one that is ignored, as below `nohup`."""
    if threading.current_thread() is not threading.main_thread():  # Python lets the main thread alone set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number, old in before.items() if old not in (signal.SIG_IGN, None)]
    try:
        for number in ours:
            signal.signal(number, handler)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
