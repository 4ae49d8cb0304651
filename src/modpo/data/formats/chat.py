"""Questions and answers of a data set as conversations, so that a model's chat template applies to them."""

from __future__ import annotations

from collections.abc import Sequence

from modpo.data.prompt_group import Message
from modpo.data.rows import Row


def message(role: str, text: str) -> Message:
    """One turn, without white space around it."""
    return {"role": role, "content": text.strip()}


def chat_row(prompt: str | list[Message], responses: Sequence[str]) -> Row | None:
    """The prompt, text or turns so far, and its responses; None if the prompt or a response is blank."""
    turns = [message("user", prompt)] if isinstance(prompt, str) else prompt
    answers = [message("assistant", response) for response in responses]
    if not all(turn["content"] for turn in [turns[-1], *answers]):
        return None
    return {"prompt": turns, "responses": [[answer] for answer in answers]}
