"""How long a run still takes: by what is expected of its stages, and what they took."""

from __future__ import annotations

import pytest

from modpo.base.progress import Progress
from modpo.pipeline.run import DRAWING_SECONDS, EVALUATE, REPORT, SWEEP, Stages

NAMES = ["sample", SWEEP, EVALUATE, REPORT]
EXPECTED = {"sample": 100.0, SWEEP: 200.0, EVALUATE: 300.0, "of another run": 7.0}


@pytest.fixture
def pass_by(clock):
    """Lets so many seconds pass."""
    return clock.pass_by


def worked(seconds, pass_by, done=0.0):
    with Progress("rows", total=4, done=done) as inner:
        pass_by(seconds)
        inner.advance(4 - done)


def test_of_what_nothing_is_known_nothing_is_said(pass_by, capsys):
    with Stages(NAMES) as run:
        with run.stage("sample"):
            worked(60, pass_by)
            assert run.left() is None
        with run.stage(SWEEP):
            assert run.status() == "1 min 0 s so far"
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("stage")] == [
        "stage 1 of 4: sample",
        "stage 2 of 4: sweep; whole run: 1 min 0 s so far",
    ]


def test_what_is_expected_is_told_at_once_and_counted_down(pass_by, capsys):
    with Stages(NAMES, EXPECTED) as run, run.stage("sample"):
        assert capsys.readouterr().err == "stage 1 of 4: sample; whole run: 0 s so far, about 10 min 10 s left\n"
        assert run.left() == 600 + DRAWING_SECONDS
        pass_by(30)
        assert run.left() == 570 + DRAWING_SECONDS


def test_the_pace_of_the_stages_before_corrects_it(pass_by, capsys):
    """Sampling took half longer than expected: so will the rest."""
    with Stages(NAMES, EXPECTED) as run:
        with run.stage("sample"):
            worked(150, pass_by)
        with run.stage(SWEEP):
            assert run.left() == 1.5 * (500 + DRAWING_SECONDS)
    assert "stage 2 of 4: sweep; whole run: 2 min 30 s so far, about 12 min 45 s left" in capsys.readouterr().err


@pytest.mark.parametrize("kept", ["all", "half"])
def test_what_was_kept_is_no_pace(pass_by, kept):
    with Stages(NAMES, EXPECTED) as run:
        with run.stage("sample"):
            if kept == "half":
                worked(50, pass_by, done=2)
            pass_by(1)
        with run.stage(SWEEP):
            assert run.left() == 500 + DRAWING_SECONDS


def test_a_stage_that_takes_longer_than_expected_is_left_unknown(pass_by):
    with Stages(NAMES, EXPECTED) as run, run.stage("sample"):
        pass_by(101)
        assert run.left() is None


def test_what_spans_the_stage_knows_better_than_what_was_expected(pass_by):
    """One of four steps took 200 s, where 200 s were expected of all four."""
    with Stages(NAMES, EXPECTED) as run, run.stage(SWEEP), Progress("training", 4, "steps", spans=True) as steps:
        pass_by(200)
        steps.advance()
        assert run.left() == 600 + 300 + DRAWING_SECONDS


def test_what_does_not_span_the_stage_tells_nothing_of_it(pass_by):
    with Stages(NAMES, EXPECTED) as run, run.stage(SWEEP), Progress("tokens", 4, "prompts") as tokens:
        pass_by(100)
        tokens.advance()
        assert run.left() == 100 + 300 + DRAWING_SECONDS


def test_the_last_stages_need_no_expectation(pass_by):
    with Stages(NAMES) as run, run.stage(EVALUATE), Progress("measured", 2, "policies", spans=True) as policies:
        pass_by(50)
        policies.advance()
        assert run.left() == 50 + DRAWING_SECONDS


def test_a_stage_that_ends_while_what_is_left_is_asked_for(monkeypatch):
    """By the thread that tells of it: nothing fails, whenever the stage ends."""
    with Stages(NAMES, EXPECTED) as run, run.stage("sample"):
        stage = run._stage

        def ends():
            run._stage = None
            return 7.0

        monkeypatch.setattr(stage, "left", ends)
        assert run.left() == 7 + 500 + DRAWING_SECONDS
        assert run.left() is None
