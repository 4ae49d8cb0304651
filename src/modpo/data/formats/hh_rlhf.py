"""HH-RLHF: two transcripts of a talk between a person and an assistant, of which people chose one.

Bai et al., "Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback", 2022,
arXiv 2204.05862; github.com/anthropics/hh-rlhf.
"""

from __future__ import annotations

import re

from modpo.base.errors import InputError, Problem
from modpo.data.formats.fields import message, unused
from modpo.data.prompt_group import Message
from modpo.data.rows import Row

ROLE_OF = {"Human": "user", "Assistant": "assistant"}
LAYOUT = "give transcripts of the form '\\n\\nHuman: ...\\n\\nAssistant: ...', or another `format` than hh_rlhf"

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def hh_rlhf_row(row: Row) -> Row | None:
    """Both transcripts as conversations: the turns in common are the prompt, the last turns the responses.

    Turns of one speaker in succession are one message. The row is left out (None) when the transcripts part
    before their last turn, so that they answer different questions, or when a last turn is empty.

    Raises:
        InputError: a transcript is missing, is not text, or does not end with the assistant.
    """
    problems = [
        Problem("", name, "missing field" if name not in row else "is not a transcript", LAYOUT)
        for name in ("chosen", "rejected")
        if not isinstance(row.get(name), str) or not _TURN.match(row[name])
    ]
    if problems:
        raise InputError(problems)
    chosen, rejected = read_transcript(row["chosen"]), read_transcript(row["rejected"])
    problems = [
        Problem("", name, "does not end with the assistant's turn", LAYOUT)
        for name, messages in (("chosen", chosen), ("rejected", rejected))
        if messages[-1]["role"] != "assistant"
    ]
    if problems:
        raise InputError(problems)
    if chosen[:-1] != rejected[:-1] or not chosen[:-1] or not chosen[-1]["content"] or not rejected[-1]["content"]:
        return None
    return {
        "prompt": chosen[:-1],
        "chosen": chosen[-1:],
        "rejected": rejected[-1:],
        **unused(row, ("chosen", "rejected")),
    }


def read_transcript(text: str) -> list[Message]:
    """The turns of a transcript, each stripped of white space around it."""
    _, *parts = _TURN.split(text)
    messages: list[Message] = []
    for speaker, words in zip(parts[::2], parts[1::2], strict=True):
        turn = message(ROLE_OF[speaker], words)
        if messages and messages[-1]["role"] == turn["role"]:
            messages[-1] = message(turn["role"], f"{messages[-1]['content']}\n\n{turn['content']}")
        else:
            messages.append(turn)
    return messages
