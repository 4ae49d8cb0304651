"""Text of files, models and libraries, made safe to print and to write down."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Any

# control, format (among them the ones that turn the direction of writing round), lone surrogates, separators
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # they shape Persian, Hindi and emoji
SECRET = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|sk-[A-Za-z0-9_-]{16,}"  # OpenAI, Anthropic
    r"|(gh[pousr]|github_pat)_\w{20,})"
    r"|(?i:(?<=bearer ))[\w.~+/-]{8,}"
    r"|(?<=://)[^\s/@]+(?=@)"  # the user and password of an address
)
SECRET_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)$")
SHORTEST_SECRET = 8  # characters: TOKEN=1 is no secret, and would take every 1 out of a text


def printable(text: str, kept: str = JOINERS) -> str:
    """Text of files, models and libraries, made safe to print: on one line, without secrets.

    A character that would not show, or would steer a terminal, is spelled out: ESC as `\\x1b`, a line break as `\\n`.
    Those in `kept` are not.
    """
    text = redacted(text)
    hidden = {c for c in set(text) if unicodedata.category(c) in INVISIBLE and c not in kept}
    return text.translate({ord(c): repr(c)[1:-1] for c in hidden})


def visible(text: str) -> str:
    """`printable`, but lines stay lines, and tabs stay tabs."""
    return printable(text.replace("\r\n", "\n"), kept=f"{JOINERS}\n\t")


def redacted(text: str) -> str:
    """`***` in place of access tokens, passwords and keys: those of the environment, and what looks like one."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and SECRET_VARIABLE.search(name.upper()):
            text = text.replace(value, "***")
    return SECRET.sub("***", text)


def without_secrets(value: Any) -> Any:
    """A JSON value with every text in it `redacted`, to be written down."""
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def first_line(error: BaseException) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
