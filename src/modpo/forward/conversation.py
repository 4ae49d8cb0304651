"""A conversation as token ids: by the model's chat template, or, where it has none, as one text that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modpo.data.tokens import stop_ids, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Conversation:
    """A person's prompts and a policy's answers.

    Args:
        room: most tokens of it; the oldest exchanges go first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, room: int) -> None:
        self.exchanges: list[tuple[str, str]] = []  # prompt and answer
        self._tokenizer, self._room = tokenizer, room
        self._templated = bool(tokenizer.chat_template)
        self.ends = stop_ids(tokenizer, conversational=self._templated)  # what ends an answer

    def ids(self, prompt: str) -> list[int]:
        """Token ids of the conversation up to the answer to a new prompt."""
        for oldest in range(len(self.exchanges) + 1):
            ids = self._encode([*self.exchanges[oldest:], (prompt, "")])
            if len(ids) <= self._room:
                break
        return ids[-self._room :]

    def _encode(self, exchanges: Sequence[tuple[str, str]]) -> list[int]:
        if not self._templated:
            return tokenize_prompt("\n".join(prompt + answer for prompt, answer in exchanges), self._tokenizer)
        roles = ("user", "assistant")
        said = [{"role": r, "content": c} for both in exchanges for r, c in zip(roles, both, strict=True)]
        return tokenize_prompt(said[:-1], self._tokenizer)  # the last answer is still to come
