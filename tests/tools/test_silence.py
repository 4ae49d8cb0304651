"""The tool that tells how long a command says nothing."""

from __future__ import annotations

import sys

from tools.silence import longest_silences, main


def test_the_longest_silence_is_told_with_what_it_followed(capsys):
    code = "import sys, time; print('one', flush=True); time.sleep(0.6); print('two', file=sys.stderr); sys.exit(3)"
    assert main([sys.executable, "-c", code]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["one", "two"]
    assert any(line.startswith("silent for 0.") and line.endswith("after: one") for line in lines[2:])


def test_the_start_and_the_end_count():
    assert longest_silences([(0.0, "the start"), (3.0, "a"), (4.0, "the end")]) == [(3.0, "the start"), (1.0, "a")]
