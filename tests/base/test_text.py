"""Text of strangers, made safe to print and to write down."""

from __future__ import annotations

import pytest

from modpo.base.text import first_line, printable, redacted, without_secrets

TOKEN = "hf_" + "a1B2" * 8


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
