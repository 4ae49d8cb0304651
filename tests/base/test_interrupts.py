"""Signals: raised at once, or put off to the end of a block; the second one does not wait."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from modpo.base.errors import NumericError
from modpo.base.interrupts import Interrupted, deferred, raised


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers are as they were, after the test, and SIGINT is not ignored, as it is below some shells."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_raised_at_once(number: int) -> None:
    with raised(), pytest.raises(Interrupted) as left:
        send(number)
    assert left.value.exit_code == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_deferred_to_the_end(number: int) -> None:
    reached: list[bool] = []

    def block() -> None:
        with deferred() as interruption:
            reached.append(interruption.asked)
            send(number)
            reached.append(interruption.asked)

    with pytest.raises(Interrupted) as left:
        block()
    assert left.value.exit_code == 128 + number
    assert reached == [False, True]


def test_the_second_signal_does_not_wait(capfd: pytest.CaptureFixture[str]) -> None:
    reached = []

    def block() -> None:
        with deferred():
            send(signal.SIGTERM)
            reached.append("after the first")
            send(signal.SIGTERM)
            reached.append("after the second")

    with pytest.raises(Interrupted):
        block()
    assert reached == ["after the first"]
    assert capfd.readouterr().err == "stopping after this step; once more to stop at once\n"


def test_an_error_does_not_hide_the_signal() -> None:
    """A sweep would record the error and go on to its next point."""

    def block() -> None:
        with deferred():
            send(signal.SIGINT)
            raise NumericError("the loss is not finite")

    with pytest.raises(Interrupted) as left:
        block()
    assert isinstance(left.value.__context__, NumericError)


def test_an_error_alone_is_the_error() -> None:
    with pytest.raises(NumericError), deferred():
        raise NumericError("the loss is not finite")


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with raised():
        outer = signal.getsignal(signal.SIGTERM)
        with deferred():
            assert signal.getsignal(signal.SIGTERM) not in (outer, before)
        assert signal.getsignal(signal.SIGTERM) is outer
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with raised(), deferred() as interruption:
        send(signal.SIGINT)
        assert not interruption.asked


def test_in_a_thread_handlers_are_left_alone() -> None:
    found = []

    def body() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with raised(), deferred() as interruption:
            found.append(signal.getsignal(signal.SIGTERM) is before and not interruption.asked)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [True]
