"""Signs of life of a real process: its lines in a log, on a terminal, after a fork, at its end."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

SHORT = "from modpo.base import heartbeat; heartbeat.SECONDS_BETWEEN_LINES = 0.2\n"
IMPORTS = SHORT + "import os, sys, time\nfrom modpo.base.progress import Progress, say, working\n"


def run(code: str, log: Path, **more: object) -> tuple[int, list[str]]:
    """The exit code of a process that runs `code`, and the lines of its stderr, which is a file."""
    with log.open("w") as stderr:
        done = subprocess.run([sys.executable, "-c", IMPORTS + code], stderr=stderr, check=False, timeout=60)
    return done.returncode, log.read_text().splitlines()


def test_a_call_that_takes_long_says_so_and_nothing_follows_its_end(tmp_path):
    """`time.sleep` lets other threads run, as torch does, and comes back after 1.1 s only."""
    code, lines = run(
        'with working("reading"):\n    time.sleep(1.1)\nsay("over")\ntime.sleep(0.6)\nsay("still nothing")',
        tmp_path / "log",
    )
    assert code == 0
    assert 2 <= lines.index("over") <= 8  # five on a machine that has nothing else to do
    assert all(re.fullmatch(r"reading: \d s so far", line) for line in lines[: lines.index("over")])
    assert lines[lines.index("over") :] == ["over", "still nothing"]


def test_lines_of_two_threads_stay_whole(tmp_path):
    code, lines = run(
        "heartbeat.SECONDS_BETWEEN_LINES = 0.0\n"
        'with working("w" * 3000):\n    for _ in range(200):\n        say("s" * 3000)\n        time.sleep(0.001)',
        tmp_path / "log",
    )
    assert code == 0
    assert {re.sub(r"s{3000}|w{3000}: \d+ s so far", "whole", line) for line in lines} == {"whole"}
    assert len(lines) > 200


def test_stderr_that_is_diverted_within_silences_it_not(tmp_path):
    divert = 'import contextlib, io\nwith working("converting"), contextlib.redirect_stderr(io.StringIO()):\n    '
    assert run(divert + "time.sleep(0.5)", tmp_path / "log")[1][0].startswith("converting: ")


@pytest.mark.parametrize(("end", "exits"), [("raise SystemExit(3)", 3), ("os._exit(4)", 4), ("1 / 0", 1)])
def test_a_process_ends_when_it_wants_to(tmp_path, end, exits):
    """In the middle of everything, whatever it is at."""
    code, lines = run(f'with working("a"), Progress("b", 3):\n    time.sleep(0.3)\n    {end}', tmp_path / "log")
    assert code == exits
    assert lines[0].startswith("b: 0 of 3, ")
    assert not any("Fatal" in line for line in lines)


def test_a_generator_that_is_never_finished_holds_up_no_end(tmp_path):
    code, lines = run(
        'def steps():\n    with working("never"):\n        yield\nkept = steps()\nnext(kept)\ntime.sleep(0.5)',
        tmp_path / "log",
    )
    assert code == 0
    assert lines
    assert all(line.startswith("never: ") for line in lines)


def test_an_interrupt_ends_it(tmp_path):
    code, lines = run(
        "import signal, threading\nfrom modpo.base.interrupts import Interrupted, raised\n"
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        'try:\n    with raised(), working("a"), Progress("b", 3):\n        time.sleep(30)\n'
        'except Interrupted:\n    say("left")\n    time.sleep(0.5)',
        tmp_path / "log",
    )
    assert code == 0
    assert lines[-1] == "left"
    assert lines[0].startswith("b: 0 of 3, ")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_keeps_quiet_and_can_speak(tmp_path):
    """Whatever the thread was at when it was forked, and also of what the child itself begins."""
    code, lines = run(
        'with working("parent"):\n    child = os.fork()\n    if not child:\n'
        '        with working("child"):\n            time.sleep(0.7)\n'
        '        say("the child speaks")\n        os._exit(0)\n    os.waitpid(child, 0)',
        tmp_path / "log",
    )
    assert code == 0
    assert "the child speaks" in lines
    assert any(line.startswith("parent: ") for line in lines)
    assert not any(line.startswith("child") for line in lines)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_what_is_forked_under_a_live_bar_writes_past_it(tmp_path):
    shown, _ = on_terminal(
        'stderr = sys.stderr\nwith Progress("scoring", 4):\n    assert sys.stderr is not stderr\n'
        "    child = os.fork()\n"
        "    if not child:\n        assert sys.stderr is stderr\n"
        '        print("the child speaks", file=sys.stderr, flush=True)\n        os._exit(0)\n'
        "    assert os.waitpid(child, 0)[1] == 0",
        tmp_path / "out",
    )
    assert "the child speaks" in shown


def test_a_log_that_nobody_reads_any_more_stops_nothing():
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTS + 'with working("a"):\n    time.sleep(1)\nprint("done")'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    process.stderr.close()
    assert process.stdout is not None
    with process:
        assert process.stdout.read() == "done\n"


def test_on_a_terminal_time_passes_and_lines_stand_above(tmp_path):
    """What is printed to a file meanwhile gets there, and in the end the terminal shows nothing but lines."""
    code = (
        'with working("reading", live=True):\n    time.sleep(1.3)\n    say("a line")\n    print("a result")\n'
        'with Progress("scoring", 4, "prompts") as bar:\n    bar.advance(4)\n'
    )
    shown, out = on_terminal(code, tmp_path / "out")
    assert len(set(re.findall(r"reading\s+(\d s so far)", shown))) > 1
    assert out == "a result\n"
    after = shown[shown.index("a line") :]
    assert "scoring: 4 of 4 prompts, took " in after
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0  # the cursor was hidden, then shown again


@pytest.mark.parametrize("fails", [False, True])
def test_a_live_bar_shows_all_and_goes_with_what_it_shows(tmp_path, fails):
    code = (
        'try:\n    with working("outside"), Progress("scoring", total=10, unit="prompts", done=3) as bar:\n'
        '        bar.note("halfway")\n        bar.advance(4)\n        time.sleep(0.6)\n'
        f"        assert {not fails}\nexcept AssertionError:\n    pass\n"
    )
    shown, _ = on_terminal(code, tmp_path / "out")
    assert re.search(r"outside\s+\d s so far", shown)
    assert re.search(r"scoring .*7 of 10 prompts, \d s so far, about \d s left, halfway", shown)
    assert ("scoring: 7 of 10 prompts, took " in shown) == (not fails)
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0


def test_a_step_of_a_library_shows_nothing_by_itself(tmp_path):
    """A user's own program may show something there, as transformers does where it reads a model."""
    shown, _ = on_terminal('with working("reading"):\n    time.sleep(0.6)', tmp_path / "out")
    assert shown == ""


def on_terminal(code: str, out: Path) -> tuple[str, str]:
    """What a process shows on a terminal as its stderr, and what it writes into a file as its stdout."""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                shown.append(data)
        except OSError:  # the other side was closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with out.open("w") as stdout:
        command = [sys.executable, "-c", IMPORTS + code]
        done = subprocess.run(command, stdout=stdout, stderr=theirs, env=environment, check=False, timeout=60)
    os.close(theirs)
    reader.join()
    os.close(ours)
    assert done.returncode == 0
    return b"".join(shown).decode(), out.read_text()
