"""Chat templates: conversations as text, what a template reads, and where an answer's turn ends.

A template is a program that the model brings. What it does with a conversation is found out by rendering.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from modpo.base.errors import InputError, Problem
from modpo.base.text import first_line
from modpo.data.prompt_group import Message
from modpo.experiment.chat_settings import FIELD

if TYPE_CHECKING:
    from jinja2.nodes import Template
    from transformers import PreTrainedTokenizerBase

# Contents of the probes, which no template writes by itself, and which look like any word.
QUESTION, ANSWER = "Questionword", "Answerword"
OTHER = "Replyingly"  # shares with ANSWER no letter at any place: what both renderings have in common is the template's
_GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # transformers' own, unknown to Jinja


def render_chat(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = False,
    whose: str = "the",
) -> str:
    """A conversation as the tokenizer's chat template writes it.

    Args:
        template_kwargs: variables that the template gets besides the messages.
        where, whose: what an error names.

    Raises:
        InputError: the template refuses it, or fails on it.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **(template_kwargs or {})
        )
    except Exception as error:  # a template is a program: it may raise anything
        roles = ", ".join(str(message["role"]) for message in messages)
        if isinstance(error, TemplateError):
            problem, fix = f"refuses roles {roles}: {first_line(error)}", "give roles that the template takes"
        else:
            problem = f"fails on roles {roles} ({type(error).__name__}: {first_line(error)})"
            fix = f"give what it reads, in the messages or as `{FIELD}`, or mend the model's chat_template.jinja"
        raise InputError(Problem(where, "prompt", f"{whose} chat template {problem}", fix)) from None
    return text


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template that conversations are rendered by; "" where there is none, or none by default of several."""
    try:
        return tokenizer.get_chat_template() if tokenizer.chat_template else ""
    except ValueError:  # rendering says so
        return ""


@lru_cache(maxsize=64)
def template_variables(template: str) -> frozenset[str]:
    """Names that a template reads and does not set: what it can be given, and functions such as `strftime_now`."""
    from jinja2 import TemplateError, meta

    try:
        return frozenset(meta.find_undeclared_variables(parsed(template)))
    except TemplateError:  # rendering will say what is wrong with it
        return frozenset()


def parsed(template: str) -> Template:
    """A template's syntax tree, a `jinja2.TemplateError` where it has none."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    return sandbox.parse(_GENERATION_TAG.sub("", template))


# --- where a turn ends --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TurnEnd:
    """What a template writes behind the content of an answer that ends a conversation.

    Attributes:
        text: what ends the turn, white space included.
        header: the beginning of the next turn, where the template writes one behind every conversation.
        tokens: id -> spelling of the tokens of the vocabulary that stand in `text`, in their order.
    """

    text: str = ""
    header: str = ""
    tokens: dict[int, str] = field(default_factory=dict)


PLAIN = TurnEnd()  # of plain text: nothing but end-of-text ends it


def turn_end(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any] | None = None) -> TurnEnd:
    """Where turns end in the tokenizer's chat template, found by rendering. Empty if it refuses the probes."""
    spellings = tuple(sorted(tokenizer.special_tokens_map.items(), key=str))
    kwargs = json.dumps(template_kwargs or {}, sort_keys=True, default=str)
    return _turn_end(tokenizer, template_of(tokenizer), str(spellings), kwargs)


@lru_cache(maxsize=32)
def _turn_end(tokenizer: PreTrainedTokenizerBase, template: str, spellings: str, kwargs: str) -> TurnEnd:
    """`turn_end`; `template`, `spellings` and `kwargs` are all that its renderings depend on."""
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        try:
            whole, other, asked = (
                render_chat(
                    [*system, {"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}],
                    tokenizer,
                    "",
                    template_kwargs=json.loads(kwargs),
                    add_generation_prompt=asking,
                )
                for answer, asking in ((ANSWER, False), (OTHER, False), (ANSWER, True))
            )
        except InputError:
            continue
        if whole != other:  # else it leaves out the answer
            before, tail = os.path.commonprefix([whole, other]), _common_end(whole, other)  # noqa: RUF071 (any texts)
            return _analysed(before.rpartition(QUESTION)[2], tail, tokenizer, ignores_asking=whole == asked)
    return TurnEnd()


def _common_end(a: str, b: str) -> str:
    return os.path.commonprefix([a[::-1], b[::-1]])[::-1]  # noqa: RUF071 (it is of any texts)


def _analysed(between: str, tail: str, tokenizer: PreTrainedTokenizerBase, *, ignores_asking: bool) -> TurnEnd:
    """The turn's end in what stands behind the answer.

    A template that ignores `add_generation_prompt` may write the next answer's header behind every conversation, as the
    first one of Llama 3 did: then the tail ends as what stands between question and answer does.

    Args:
        between: what the template writes between question and answer.
        tail: what it writes behind the answer.
    """
    spelled = added_tokens(tokenizer)
    pattern = re.compile("|".join(re.escape(text) for text in sorted(spelled, key=len, reverse=True)) or r"(?!)")
    first = pattern.search(tail)
    end = first.end() if first else 0
    end += len(tail[end:]) - len(tail[end:].lstrip())
    rest = tail[end:]
    header = rest if ignores_asking and rest and between.rstrip().endswith(rest.rstrip()) else ""
    text = tail.removesuffix(header)
    return TurnEnd(text, header, {spelled[found[0]]: found[0] for found in pattern.finditer(text)})


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Spelling -> id of the tokens that are never split, special or not, and of end-of-text; none that is blank."""
    found = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    if tokenizer.eos_token:
        found[tokenizer.eos_token] = tokenizer.eos_token_id
    if tokenizer.unk_token != tokenizer.eos_token:
        found.pop(tokenizer.unk_token, None)
    return found


def stop_ids(
    tokenizer: PreTrainedTokenizerBase,
    *,
    conversational: bool,
    template_kwargs: Mapping[str, Any] | None = None,
    own: Sequence[int] = (),
) -> list[int]:
    """The ids that end an answer: end-of-text, every token that ends a turn in the chat template, the model's own.

    Args:
        own: what the model's generation settings name, see `modpo.models.reference`.
    """
    turn = turn_end(tokenizer, template_kwargs) if conversational else PLAIN
    return sorted({tokenizer.eos_token_id, *turn.tokens, *own})
