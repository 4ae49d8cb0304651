"""A conversation as token ids: by the model's chat template, or, where it has none, as one text that goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modpo.data.chat_template import stop_ids
from modpo.data.tokens import tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Conversation:
    """A person's prompts and a policy's answers.

    Args:
        room: most tokens of it; the oldest exchanges go first.
        template_kwargs: variables that the chat template gets besides the messages.
        ends: ids that end an answer; default: those of the tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        room: int,
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        ends: Sequence[int] | None = None,
    ) -> None:
        self.exchanges: list[tuple[str, str]] = []  # prompt and answer
        self._tokenizer, self._room, self._kwargs = tokenizer, room, template_kwargs
        self._templated = bool(tokenizer.chat_template)
        own = stop_ids(tokenizer, conversational=self._templated, template_kwargs=self._kwargs)
        self.ends = list(ends or own)

    def ids(self, prompt: str) -> list[int]:
        """Token ids of the conversation up to the answer to a new prompt."""
        if self._templated:
            roles = ("user", "assistant")
            said = [{"role": r, "content": c} for both in self.exchanges for r, c in zip(roles, both, strict=True)]
            said.append({"role": "user", "content": prompt})
            return tokenize_prompt(said, self._tokenizer, self._kwargs, longest=self._room)
        for oldest in range(len(self.exchanges) + 1):
            texts = [*("".join(exchange) for exchange in self.exchanges[oldest:]), prompt]
            ids = tokenize_prompt("\n".join(texts), self._tokenizer)
            if len(ids) <= self._room:
                return ids
        return tokenize_prompt(prompt, self._tokenizer, longest=self._room)
