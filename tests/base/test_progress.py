"""What a person who waits is told: a line now and then in a log, a live bar on a terminal, all of it on stderr."""

from __future__ import annotations

import io
import sys

import pytest

from modpo.base import progress
from modpo.base.progress import SECONDS_BETWEEN_LINES, Progress, duration, say


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """A clock that stands still until it is told to move on by so many seconds."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

        def pass_by(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (42.4, "42 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (60, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7800, "2 h 10 min"),
        (100 * 3600 + 59, "100 h 0 min"),
    ],
)
def test_duration(seconds, said):
    assert duration(seconds) == said


def test_a_line_goes_to_stderr_at_once(capsys):
    say("point 1 of 5")
    assert capsys.readouterr() == ("", "point 1 of 5\n")


def test_nothing_is_said_more_often_than_now_and_then(capsys, clock):
    with Progress("scoring", total=100, unit="prompts") as bar:
        for _ in range(14):
            clock.pass_by(1)
            bar.advance()
        assert capsys.readouterr() == ("", "")
        clock.pass_by(SECONDS_BETWEEN_LINES)
        bar.advance(6)
        # 20 in 29 s: 80 are left, which take 116 s.
        assert capsys.readouterr().err == "scoring: 20 of 100 prompts, 1 min 56 s left\n"
        clock.pass_by(1)
        bar.advance()
        assert capsys.readouterr().err == ""
        bar.advance(79)
    assert capsys.readouterr() == ("", "scoring: 100 of 100 prompts, took 30 s\n")


def test_what_was_done_before_does_not_count_as_fast(capsys, clock):
    """Resumed at 50; 10 more took 20 s, so the 40 that are left take 80 s."""
    with Progress("scoring", total=100, unit="prompts", done=50) as bar:
        clock.pass_by(20)
        bar.advance(10)
    assert capsys.readouterr().err.splitlines()[0] == "scoring: 60 of 100 prompts, 1 min 20 s left"


def test_without_any_progress_there_is_no_guess(capsys, clock):
    with Progress("scoring", total=100, unit="prompts") as bar:
        clock.pass_by(20)
        bar.advance(0)
    assert "0 of 100 prompts, ? left" in capsys.readouterr().err


def test_a_note_is_shown_beside_it(capsys, clock):
    with Progress("training", total=10, unit="steps") as bar:
        bar.note("loss 0.61")
        clock.pass_by(20)
        bar.advance(5)
    assert capsys.readouterr().err.splitlines()[0] == "training: 5 of 10 steps, 20 s left, loss 0.61"


def test_what_fails_is_not_said_to_be_done(capsys, clock):
    with pytest.raises(RuntimeError, match="no"), Progress("scoring", total=10, unit="prompts") as bar:  # noqa: PT012
        bar.advance(10)
        raise RuntimeError("no")
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("fails", [False, True])
def test_on_a_terminal_there_is_a_live_bar_that_ends_with_it(monkeypatch, capsys, fails):
    """It shows label, note, count and unit, and gives the cursor back, whether or not it went well."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    try:
        with Progress("scoring", total=10, unit="prompts", done=3) as bar:
            bar.note("halfway")
            bar.advance(4)
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    shown = terminal.getvalue()
    assert "scoring (halfway)" in shown
    assert "7/10" in shown
    assert "prompts" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0  # the cursor was hidden, then shown again
    assert capsys.readouterr().out == ""
