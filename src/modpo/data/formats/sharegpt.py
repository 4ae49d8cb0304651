"""The ShareGPT layout of preference data, as LLaMA-Factory has it: a conversation, and two answers to its last turn.

Zheng et al., "LlamaFactory: Unified Efficient Fine-Tuning of 100+ Language Models", ACL 2024, arXiv 2403.13372; the
layout is described in data/README.md of github.com/hiyouga/LLaMA-Factory. On the Hub, among others:
llamafactory/DPO-En-Zh-20k.
"""

from __future__ import annotations

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
USED = ("conversations", "system", "chosen", "rejected")


def sharegpt_row(row: Row) -> Row | None:
    """The conversation as the prompt, with `system`, where there is one, before it; the two answers as a pair.

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
    return {"prompt": turns, "chosen": [chosen], "rejected": [rejected], **unused(row, USED)}


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
