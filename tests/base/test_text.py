"""What is made safe to show: no invisible character, no secret."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from modpo.base.text import INVISIBLE, JOINERS, first_line, printable, redacted, visible

TOKEN = "hf_" + "aB3" * 8
HIDDEN = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) in INVISIBLE and c not in JOINERS]


@pytest.mark.parametrize("shown", [printable, visible])
def test_every_invisible_character_is_spelled_out(shown) -> None:
    left = {c for c in shown("".join(HIDDEN)) if unicodedata.category(c) in INVISIBLE}
    assert left == ({"\n", "\t"} if shown is visible else set())
    assert shown("\u200b\ufeff\xad\u202e\U000e0041\x1b") == r"\u200b\ufeff\xad\u202e\U000e0041\x1b"


def test_letters_and_what_shapes_them_stay() -> None:
    text = "héllo 你好 مي\u200cخواهم 👨\u200d👩 ❤\ufe0f"
    assert printable(text) == visible(text) == text


def test_lines_stay_lines_where_a_text_has_several() -> None:
    assert printable("one\r\n\ttwo") == r"one\r\n\ttwo"
    assert visible("one\r\n\ttwo\rthree") == "one\n\ttwo\\rthree"


@pytest.mark.parametrize("shown", [printable, visible, redacted])
def test_secrets_are_blacked_out(shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "correct horse")
    assert shown(f"{TOKEN} and correct horse") == "*** and ***"
    assert shown("https://me:password@host/x") == "https://***@host/x"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  one \ntwo"), "one"),
        (ValueError(), "ValueError"),
        (KeyboardInterrupt(" \n"), "KeyboardInterrupt"),
    ],
)
def test_the_first_line_of_an_error(error: BaseException, line: str) -> None:
    assert first_line(error) == line
