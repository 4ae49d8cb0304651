"""What a person who waits is told: a line now and then in a log, a live bar on a terminal, all of it on stderr."""

from __future__ import annotations

import sys
import threading

import pytest

from modpo.base import heartbeat
from modpo.base.heartbeat import HEARTBEAT
from modpo.base.progress import SECONDS_BETWEEN_LINES, Progress, duration, say, working


def beat() -> None:
    """What the heartbeat's thread does now and then."""
    HEARTBEAT.beat(sys.stderr)


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
        for _ in range(11):
            clock.pass_by(1)
            bar.advance()
            beat()
        assert capsys.readouterr() == ("", "")
        clock.pass_by(9)
        bar.advance(9)
        beat()
        # 20 in 20 s: 80 are left, which take 80 s.
        assert capsys.readouterr().err == "scoring: 20 of 100 prompts, 20 s so far, about 1 min 20 s left\n"
        clock.pass_by(SECONDS_BETWEEN_LINES - 1)
        beat()
        assert capsys.readouterr().err == ""
        bar.advance(80)
    assert capsys.readouterr() == ("", "scoring: 100 of 100 prompts, took 31 s\n")


def test_a_line_of_another_kind_is_a_sign_of_life_too(capsys, clock):
    with working("reading"):
        clock.pass_by(SECONDS_BETWEEN_LINES - 1)
        say("warning: it is large")
        clock.pass_by(SECONDS_BETWEEN_LINES - 1)
        beat()
        assert capsys.readouterr().err == "warning: it is large\n"
        clock.pass_by(1)
        beat()
        assert capsys.readouterr().err == "reading: 23 s so far\n"


def test_what_was_done_before_does_not_count_as_fast(capsys, clock):
    """Resumed at 50; 10 more took 20 s, so the 40 that are left take 80 s."""
    with Progress("scoring", total=100, unit="prompts", done=50) as bar:
        clock.pass_by(20)
        bar.advance(10)
        beat()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "scoring: 60 of 100 prompts, 20 s so far, about 1 min 20 s left"


def test_without_any_progress_there_is_no_guess(capsys, clock):
    with Progress("scoring", total=100, unit="prompts"):
        clock.pass_by(20)
        beat()
        assert capsys.readouterr().err == "scoring: 0 of 100 prompts, 20 s so far\n"


def test_a_note_is_shown_beside_it(capsys, clock):
    with Progress("training", total=10, unit="steps") as bar:
        bar.note("loss 0.61")
        clock.pass_by(20)
        bar.advance(5)
        beat()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "training: 5 of 10 steps, 20 s so far, about 20 s left, loss 0.61"


def test_a_fraction_of_one_is_progress(capsys, clock):
    """Half an answer after 20 s: the other half and one more take 60 s."""
    with Progress("answers", total=2, unit="answers") as bar:
        clock.pass_by(20)
        bar.advance(0.5)
        beat()
        assert capsys.readouterr().err == "answers: 0 of 2 answers, 20 s so far, about 1 min 0 s left\n"


def test_fractions_that_make_a_whole_are_one(capsys):
    with Progress("answers", total=1, unit="answers") as bar:
        for _ in range(10):
            bar.advance(0.1)
    assert bar.done < 1
    assert capsys.readouterr().err == "answers: 1 of 1 answers, took 0 s\n"


def test_the_innermost_is_told_and_what_is_known_around_it(capsys, clock):
    with working("modpo sweep"), Progress("sweep", total=4, unit="points", done=1), working("reading the model"):
        clock.pass_by(20)
        beat()
        assert capsys.readouterr().err == "reading the model: 20 s so far; sweep: 1 of 4 points\n"


# --- pieces of work -----------------------------------------------------------------------------------------


def worked(seconds, clock):
    with Progress("answers", total=2) as inner:
        clock.pass_by(seconds)
        inner.advance(2)


def test_what_is_left_counts_all_pieces(clock):
    """Two of five took 100 s each; 30 s into the third, 270 s are left of the five."""
    with Progress("measured", total=5, unit="policies") as pieces:
        for _ in range(2):
            with pieces.part():
                worked(100, clock)
        with pieces.part():
            clock.pass_by(30)
            assert pieces.left() == 270
            clock.pass_by(100)
            assert pieces.left() == 200  # the third should have ended: of the other two nothing is taken off


def test_a_piece_that_was_kept_teaches_nothing(clock):
    with Progress("measured", total=5, unit="policies") as pieces:
        with pieces.part():
            clock.pass_by(3)
        assert pieces.left() is None
        with pieces.part():
            worked(100, clock)
        assert pieces.left() == 300


def test_a_piece_of_one_progress_is_as_far_as_that(clock):
    """A quarter of the first of two pieces took 50 s: 350 s are left, also from within a step of it."""
    points, steps = Progress("sweep", total=2, unit="points"), Progress("training", total=8, unit="steps")
    with points, points.part(spanned=True), working("the policy"), steps:
        clock.pass_by(50)
        steps.advance(2)
        with working("the checkpoint"):
            assert points.left() == 350


def test_what_fails_is_not_said_to_be_done(capsys, clock):
    with pytest.raises(RuntimeError, match="no"), Progress("scoring", total=10, unit="prompts") as bar:  # noqa: PT012
        bar.advance(10)
        raise RuntimeError("no")
    assert capsys.readouterr() == ("", "")


def test_more_than_the_total_leaves_nothing(clock):
    with Progress("scoring", total=3) as bar:
        clock.pass_by(20)
        bar.advance(5)
        assert bar.left() == 0


def test_a_beat_that_fails_is_not_the_last(capsys, monkeypatch):
    """The thread goes on after whatever error."""
    monkeypatch.setattr(heartbeat, "SECONDS_BETWEEN_LINES", 0.01)
    monkeypatch.setattr(heartbeat, "SECONDS_BEFORE_ANOTHER_TRY", 0.01)
    said_after = threading.Event()
    failures = iter([RuntimeError("changed meanwhile"), ZeroDivisionError(), ValueError()])

    class Fails(heartbeat.Activity):
        def status(self) -> str:
            for error in failures:
                raise error
            said_after.set()
            return super().status()

    with Fails("reading"):
        assert said_after.wait(10)
