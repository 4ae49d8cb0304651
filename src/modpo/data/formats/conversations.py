"""Conversations with two answers to their last turn: ShareGPT, HH-RLHF."""

from __future__ import annotations

import re

from modpo.base.errors import InputError, Problem
from modpo.data.formats.fields import Fields, message, unused
from modpo.data.prompt_group import Message
from modpo.data.rows import Row

ROLE_OF = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
}
TRANSCRIPTS = "give transcripts of the form '\\n\\nHuman: ...\\n\\nAssistant: ...', or another `format` than hh_rlhf"

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def sharegpt_row(row: Row) -> Row | None:
    """ShareGPT's layout of preference data: the conversation is the prompt, behind `system` if that is given.

    Zheng et al., "LlamaFactory: Unified Efficient Fine-Tuning of 100+ Language Models", ACL 2024, arXiv 2403.13372;
    the layout is described in data/README.md of github.com/hiyouga/LLaMA-Factory. On the Hub, among others:
    llamafactory/DPO-En-Zh-20k.

    Returns:
        None if an answer is blank.

    Raises:
        InputError: a field of the layout is missing or of another kind; a speaker who is not known (function calls
            are not supported); a conversation that ends with an answer, or an answer that is not the assistant's.
    """
    with Fields(row, "sharegpt") as fields:
        turns = [_message(turn) for turn in fields.each("conversations")]
        system = fields.text("system", optional=True)
        chosen, rejected = (_answer(fields.inside(side)) for side in ("chosen", "rejected"))
        if not turns:
            fields.report("conversations", "is empty")
        elif turns[-1]["role"] not in ("user", "tool"):
            fields.report("conversations", "does not end with a turn to answer")
    if not chosen["content"] or not rejected["content"]:
        return None
    if system.strip() and turns[0]["role"] != "system":
        turns = [message("system", system), *turns]
    return {
        "prompt": turns,
        "chosen": [chosen],
        "rejected": [rejected],
        **unused(row, ("conversations", "system", "chosen", "rejected")),
    }


def _message(turn: Fields) -> Message:
    speaker = turn.text("from")
    if speaker not in ROLE_OF:
        turn.report("from", f"{speaker!r:.60} is none of {', '.join(ROLE_OF)}")
    return message(ROLE_OF.get(speaker, "user"), turn.text("value"))


def _answer(fields: Fields) -> Message:
    answer = _message(fields)
    if answer["role"] != "assistant":
        fields.report("from", "is not gpt")
    return answer


def hh_rlhf_row(row: Row) -> Row | None:
    """HH-RLHF, two transcripts of which people chose one: their common turns are the prompt, the last ones the answers.

    Turns of one speaker in succession are one message. The row is left out (None) when the transcripts part
    before their last turn, so that they answer different questions, or when a last turn is empty.

    Bai et al., "Training a Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback", 2022,
    arXiv 2204.05862; github.com/anthropics/hh-rlhf.

    Raises:
        InputError: a transcript is missing, is not text, or does not end with the assistant.
    """
    problems = [
        Problem("", name, "missing field" if name not in row else "is not a transcript", TRANSCRIPTS)
        for name in ("chosen", "rejected")
        if not isinstance(row.get(name), str) or not _TURN.match(row[name])
    ]
    if problems:
        raise InputError(problems)
    chosen, rejected = read_transcript(row["chosen"]), read_transcript(row["rejected"])
    problems = [
        Problem("", name, "does not end with the assistant's turn", TRANSCRIPTS)
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
    """The turns of an HH-RLHF transcript, each stripped of white space around it."""
    _, *parts = _TURN.split(text)
    messages: list[Message] = []
    for speaker, words in zip(parts[::2], parts[1::2], strict=True):
        turn = message(ROLE_OF[speaker.lower()], words)
        if messages and messages[-1]["role"] == turn["role"]:
            messages[-1] = message(turn["role"], f"{messages[-1]['content']}\n\n{turn['content']}")
        else:
            messages.append(turn)
    return messages
