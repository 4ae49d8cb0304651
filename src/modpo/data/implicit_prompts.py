"""Whether what chosen and rejected begin with in common is a prompt.

TRL takes it for one. Where all answers of a data set begin alike ("The answer is"), and the questions stand elsewhere,
these words would become the prompt of every question. So a common beginning is refused as a prompt if at least
`MANY` different rows share it, most of whose answers stand in one of them only, and it is at most `SHORT` words long
and has neither a question mark nor two speakers ("Human: ... Assistant:").
"""

from __future__ import annotations

import re
from typing import Any

MANY = 5  # rows
SHORT = 12  # words
OWN_FIELD = "give the prompt in a field of its own, `prompt`"

_SPEAKER = re.compile(
    r"(?:^|\s)[\w# ]{0,30}\w:"  # Human: Assistant: Q: ### Response:
    r"|<\|[^|<>]+\|>|<\w*(?:turn|user|assistant|human|model|bot)\w*>"  # <|im_start|> <start_of_turn>
    r"|\[/?(?:INST|SYS)\w*\]",
    re.IGNORECASE,
)


def is_shared_by_strangers(rows: Any, responses: Any) -> Any:
    """Whether so many different rows hold so many different responses that hardly two rows share one.

    Where several answers to one prompt are compared with each other, rows share responses: there are fewer than 1.5
    a row. Takes numbers or arrays.
    """
    return (rows >= MANY) & (2 * responses >= 3 * rows)


def looks_like_prompt(beginning: str) -> bool:
    """Whether it is long, asks something, or is a dialogue."""
    long = len(beginning.split()) > SHORT
    return long or "?" in beginning or "？" in beginning or len(_SPEAKER.findall(beginning)) > 1
