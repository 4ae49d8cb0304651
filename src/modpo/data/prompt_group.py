"""What a prompt group is: one prompt, its distinct responses once, its preference pairs as indices.

Rows that share a prompt become one group, so that a prompt is read once and a response is scored once, however
many pairs it stands in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modpo.experiment.chat_settings import FIELD

Message = dict[str, Any]  # {"role": ..., "content": ...}, and what else a chat template may read of it; nothing null
Text = str | list[Message]  # plain, or conversational as TRL knows it
Pair = tuple[int, int]  # (chosen, rejected), indices into the responses
LabelSets = dict[str, tuple[Pair, ...]]  # who prefers what: pairs by label set
UNNAMED = "data"  # the label set of plain chosen and rejected


@dataclass(frozen=True)
class PromptGroup:
    """One prompt with everything that is known of its responses."""

    prompt: Text
    responses: tuple[Text, ...]  # distinct; conversational ones are lists of assistant messages
    pairs: LabelSets = field(default_factory=dict)
    columns: dict[str, tuple[float | None, ...]] = field(default_factory=dict)  # one number per response
    fields: dict[str, Any] = field(default_factory=dict)  # what else the rows say of the prompt
    where: str = ""  # "rows.jsonl:12", the first row of the group
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # variables of the chat template, see `chat_settings`

    @property
    def prompt_row(self) -> dict[str, Any]:
        """The prompt as a row of data says it."""
        return {"prompt": self.prompt, **({FIELD: self.template_kwargs} if self.template_kwargs else {})}


def plain_text(text: Text) -> str:
    """The words themselves: a plain text as it is, a conversation as its messages' contents."""
    if isinstance(text, str):
        return text
    return "\n".join(str(message["content"]) for message in text)
