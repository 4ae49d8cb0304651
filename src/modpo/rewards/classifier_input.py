"""A prompt and a response as a reward model reads them.

    chat template   the conversation, as the template writes it; plain texts become a user's and an assistant's message
    separator       (encoders as BERT) two segments: the prompt, the response
    otherwise       prompt and response as one text that ends with end-of-text; messages joined by blank lines

This is also how TRL's RewardTrainer reads conversations (first) and plain texts (last). What is too long loses the
beginning of its prompt; a response that is too long by itself loses its beginning too, so that its end is always read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modpo.data.prompt_group import Message, Text
from modpo.data.tokens import render_chat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

RULES = 1  # raised whenever this file turns the same texts into other ids


@dataclass(frozen=True)
class Encoded:
    """One prompt with its response, as ids."""

    input_ids: list[int]
    token_type_ids: list[int] | None  # 0 for the prompt, 1 for the response, from tokenizers that tell them apart
    cut: bool  # it was too long


@dataclass(frozen=True)
class ClassifierInput:
    """Texts into ids, by one tokenizer.

    Args:
        max_length: most tokens of prompt and response together.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    @property
    def form(self) -> str:
        """How prompt and response are put together: "chat", "pair" or "text"."""
        if self.tokenizer.chat_template:
            return "chat"
        return "pair" if self.tokenizer.sep_token is not None else "text"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the ids besides the tokenizer, for a cache key."""
        return {"rules": RULES, "form": self.form, "inputs": self.tokenizer.model_input_names}

    def encode(self, prompt: Text, response: Text, where: str) -> Encoded:
        """Ids of a prompt with its response.

        Raises:
            InputError: the chat template refuses the conversation.
        """
        if self.form == "chat":
            messages = _messages(prompt, "user") + _messages(response, "assistant")
            text = render_chat(messages, self.tokenizer, where, whose="the reward model's")
            return self._last(self._ids(text, add_special_tokens=False))  # the template has written them
        if self.form == "pair":
            return self._pair(_joined(prompt), _joined(response))
        plain = isinstance(prompt, str) and isinstance(response, str)
        text = ("" if plain else "\n\n").join([_joined(prompt), _joined(response)])
        ids, end = self._ids(text, add_special_tokens=True), self.tokenizer.eos_token_id
        return self._last(ids if end is None or ids[-1:] == [end] else [*ids, end])

    def pad(self, encoded: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
        """Model inputs, each (b, S), filled up on the right."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        def rows(lists: Sequence[list[int]], filler: int) -> Tensor:
            return pad_sequence([torch.tensor(values) for values in lists], batch_first=True, padding_value=filler)

        inputs = {
            "input_ids": rows([item.input_ids for item in encoded], pad_id),
            "attention_mask": rows([[1] * len(item.input_ids) for item in encoded], 0),
        }
        segments = [item.token_type_ids for item in encoded if item.token_type_ids is not None]
        return {**inputs, "token_type_ids": rows(segments, 0)} if segments else inputs

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return ids

    def _last(self, ids: list[int]) -> Encoded:
        """The last `max_length` ids, behind the beginning-of-text where there is one."""
        cut = len(ids) > self.max_length
        if cut:
            starts = (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id)
            first = [id for id in ids[:1] if id in starts]
            ids = first + ids[len(ids) - self.max_length + len(first) :]
        return Encoded(ids, None, cut)

    def _pair(self, prompt: str, response: str) -> Encoded:
        """Two segments, each with the special tokens that the tokenizer puts around it."""
        sizes = [len(self._ids(text, add_special_tokens=False)) for text in (prompt, response)]
        room = self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        how: dict[str, Any] = {}
        if sum(sizes) > room:
            keeps_prompt = sizes[1] < room
            prompt = prompt if keeps_prompt else ""
            how = {"truncation": "only_first" if keeps_prompt else "only_second", "max_length": self.max_length}
            self.tokenizer.truncation_side = "left"
        encoded = self.tokenizer([prompt], [response], verbose=False, **how)  # alone, an empty response counts as none
        segments = encoded.get("token_type_ids")
        return Encoded(encoded["input_ids"][0], segments[0] if segments else None, bool(how))


def _messages(text: Text, role: str) -> list[Message]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)


def _joined(text: Text) -> str:
    return text if isinstance(text, str) else "\n\n".join(message["content"] for message in text)
