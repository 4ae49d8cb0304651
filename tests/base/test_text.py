"""What is made safe to show: no invisible character, no secret."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from modpo.base.text import INVISIBLE, JOINERS, first_line, printable, redacted, visible, without_secrets

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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Äpfel, 🍏 and क्‍ष", "plain, Äpfel, 🍏 and क्‍ष"),  # a joiner shapes the last letter
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("half \ud800", r"half \ud800"),
        ("\u2028", r"\u2028"),
    ],
)
def test_what_would_not_show_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text, kept=text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token {TOKEN}.", "token ***."),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("https://me:secret@host/path", "https://***@host/path"),
        ("sk-" + "x" * 20, "***"),
        ("hf_short and task-sk-1", "hf_short and task-sk-1"),
    ],
)
def test_what_looks_like_a_secret_is_left_out(text: str, shown: str) -> None:
    assert redacted(text) == printable(text) == shown
    assert without_secrets({"a": [text, 1, None], "b": (text,)}) == {"a": [shown, 1, None], "b": [shown]}


def test_secrets_of_the_environment_are_left_out_but_not_what_is_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "opensesame")
    monkeypatch.setenv("OTHER_TOKEN", "1")
    monkeypatch.setenv("HARMLESS", "quite long")
    assert redacted("opensesame 1 quite long") == "*** 1 quite long"


def test_the_first_line_of_an_error_is_its_kind_where_it_says_nothing() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
