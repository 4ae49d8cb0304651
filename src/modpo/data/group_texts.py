"""A prompt and its responses as texts that the tokenizer reads, and what a chat template does to them on the way."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modpo.data.chat_template import TurnEnd, render_chat, template_of, template_variables, turn_end
from modpo.data.prompt_group import Message, PromptGroup, Text
from modpo.experiment.chat_settings import FIELD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class GroupTexts:
    """What is tokenized.

    Attributes:
        prompt: what policies answer.
        wholes: prompt and response, for each response, up to the end of its turn.
        ended: for each response, whether its end stands in the text; else end-of-text is appended to its ids.
        bodies: each response as it was written, without ends of turns that it spells out at its own end.
    """

    prompt: str
    wholes: list[str]
    ended: list[bool]
    bodies: Sequence[Text]
    turn: TurnEnd

    def shared(self, response: int) -> int:
        """How many characters of the prompt the text of a response begins with."""
        whole = self.wholes[response]
        if whole.startswith(self.prompt):  # nearly always, and far quicker
            return len(self.prompt)
        return len(os.path.commonprefix([self.prompt, whole]))  # noqa: RUF071 (it is of any texts)

    def trained(self, response: int) -> str:
        """What stands behind those characters, without the end of the turn."""
        return self.wholes[response].removesuffix(self.turn.text)[self.shared(response) :]

    def is_whole(self, response: int) -> bool:
        """Whether the response stands in its text word by word, whatever the template adds to it."""
        body = self.bodies[response]
        if isinstance(body, str):
            return True
        whole, at = self.wholes[response], self.shared(response) - len(body[0]["content"])
        for message in body:
            at = whole.find(message["content"], max(at, 0))
            if at < 0:
                return False
            at += len(message["content"])
        return True


def group_texts(group: PromptGroup, tokenizer: PreTrainedTokenizerBase) -> GroupTexts:
    """The texts of a group.

    Raises:
        InputError: the chat template refuses the conversation.
    """
    if isinstance(group.prompt, str):
        eos = [tokenizer.eos_token]
        bodies = [_without_end(response, eos) for response in group.responses if isinstance(response, str)]
        wholes = [group.prompt + body for body in bodies]
        _require_one_kind(group, len(bodies))
        return GroupTexts(group.prompt, wholes, [False] * len(wholes), bodies, TurnEnd())
    prompt = prompt_text(group.prompt, tokenizer, group.template_kwargs, group.where)
    turn = turn_end(tokenizer, group.template_kwargs)
    ends = {tokenizer.eos_token, *turn.tokens.values()}
    chats = [_ended(response, ends) for response in group.responses if not isinstance(response, str)]
    _require_one_kind(group, len(chats))
    wholes = [_render(group, tokenizer, [*group.prompt, *chat]).removesuffix(turn.header) for chat in chats]
    ended = [bool(turn.tokens) or whole.rstrip().endswith(tokenizer.eos_token) for whole in wholes]
    return GroupTexts(prompt, wholes, ended, chats, turn)


def prompt_text(prompt: Text, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any], where: str) -> str:
    """What policies answer: a plain text as it is, a conversation up to the assistant's turn."""
    if isinstance(prompt, str):
        return prompt
    return render_chat(prompt, tokenizer, where, template_kwargs=kwargs, add_generation_prompt=True)


def unread(group: PromptGroup, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the rows say and the chat template does not write, by name, each once.

    That is a key of a message or of the row's `chat_template_kwargs`, or a message of the prompt. What an assistant
    said before may be shortened: so it is when policies answer.
    """
    if isinstance(group.prompt, str):
        return []
    text = _render(group, tokenizer, group.prompt)
    lost = [m["role"] for m in group.prompt if m["role"] != "assistant" and m["content"].strip() not in text]
    known = template_variables(template_of(tokenizer))
    names = [f"message of role {role}" for role in lost]
    names += [f"`{FIELD}.{name}`" for name in group.template_kwargs if name not in known]
    return list(dict.fromkeys([*names, *(f"key `{key}` of a message" for key in _unread_keys(group, tokenizer))]))


def spelled_out(group: PromptGroup, texts: GroupTexts, special: Collection[str]) -> int:
    """Texts that spell out a special token. A plain prompt may: it can be a conversation written out."""
    prompt = [] if isinstance(group.prompt, str) else _contents(group.prompt)
    contents = [*prompt, *(content for body in texts.bodies for content in _contents(body))]
    return sum(any(token in content for token in special) for content in contents)


def _contents(text: Text) -> list[str]:
    return [text] if isinstance(text, str) else [message["content"] for message in text]


def _unread_keys(group: PromptGroup, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Keys of messages, besides role and content, without which every conversation of the group reads the same."""
    assert not isinstance(group.prompt, str)
    chats = [[*group.prompt, *response] for response in group.responses if not isinstance(response, str)]
    for chat in chats or [group.prompt]:
        for key in dict.fromkeys(key for message in chat for key in message if key not in ("role", "content")):
            without = [{name: value for name, value in message.items() if name != key} for message in chat]
            if _render(group, tokenizer, chat) == _render(group, tokenizer, without):
                yield key


def _render(group: PromptGroup, tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    return render_chat(messages, tokenizer, group.where, template_kwargs=group.template_kwargs)


def _require_one_kind(group: PromptGroup, count: int) -> None:
    if count < len(group.responses):
        raise TypeError(f"{group.where}: plain text and conversation in one group")


def _ended(response: list[Message], ends: Collection[str]) -> list[Message]:
    *turns, last = response
    return [*turns, {**last, "content": _without_end(last["content"], ends)}]


def _without_end(text: str, ends: Collection[str]) -> str:
    """The text without the tokens that end a turn and that it spells out at its end."""
    while end := next((end for end in ends if text.rstrip().endswith(end)), None):
        text = text.rstrip().removesuffix(end)
    return text
