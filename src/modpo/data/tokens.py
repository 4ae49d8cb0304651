"""Prompt groups into token ids. The only place that tokenizes training text.

The ids of a prompt and one of its responses, one after the other, are the ids of the whole text as the
tokenizer reads it, as in TRL's DPOTrainer. A response ends with exactly one end-of-text token (or the chat
template's end of turn), and nothing stands behind it. A special token that a text spells out is read as one,
in training as in generation; such texts are counted, and end no response early.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modpo.base.errors import InputError, Problem, Problems
from modpo.data.prompt_group import Message, PromptGroup, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RULES = 1  # raised whenever this file turns the same text into other ids


@dataclass(frozen=True)
class TokenizedGroup:
    """A prompt's ids once, and the ids that follow it for each response."""

    prompt_ids: list[int]
    responses_ids: list[list[int]]  # each ends with end-of-text, unless it was cut
    prompt_truncated: bool  # the prompt lost its beginning
    responses_truncated: int  # how many responses lost their end
    merged_boundary: int  # how many responses share a token with the prompt's end
    special_in_text: int  # how many texts spell out a special token, which is read as one


def tokenize_group(
    group: PromptGroup,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
) -> TokenizedGroup:
    """Tokenize a prompt and its responses.

    Where a token spans the boundary of prompt and response, the prompt is cut before it, for all responses.

    Args:
        max_length: most tokens of prompt and response together; a longer response loses its end.
        max_prompt_length: most tokens of the prompt; a longer one loses its beginning. None: what the longest
            response leaves of `max_length`, but at least half of it.

    Raises:
        InputError: no response token or no prompt token is left, the chat template refuses the conversation,
            or the lengths leave no room.
    """
    _check_lengths(max_length, max_prompt_length)
    special = _special_tokens(tokenizer)
    prompt_ids, *whole_ids = _encode(_texts(group, tokenizer), tokenizer, plain=isinstance(group.prompt, str))
    shared = [_common_prefix(prompt_ids, ids) for ids in whole_ids]
    boundary = min(shared)
    responses = [_end_once(ids[boundary:], group.prompt, tokenizer, special) for ids in whole_ids]
    _check_nothing_empty(boundary, responses, special, group.where)
    if max_prompt_length is None:
        max_prompt_length = max(max_length // 2, max_length - max(map(len, responses)))
    kept = prompt_ids[:boundary][-max_prompt_length:]
    room = max_length - len(kept)
    return TokenizedGroup(
        prompt_ids=kept,
        responses_ids=[ids[:room] for ids in responses],
        prompt_truncated=len(kept) < boundary,
        responses_truncated=sum(len(ids) > room for ids in responses),
        merged_boundary=sum(length < len(prompt_ids) for length in shared),
        special_in_text=_count_special(group, tokenizer, special),
    )


def tokenize_groups(
    groups: Iterable[PromptGroup],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
) -> list[TokenizedGroup]:
    """`tokenize_group` of each group.

    Raises:
        InputError: what is wrong with the groups, up to 20 problems at once; a group without responses.
    """
    tokenized: list[TokenizedGroup] = []
    problems = Problems()
    for group in groups:
        with problems:
            if not group.responses:
                fix = "give responses, or take the row out"
                raise InputError(Problem(group.where, "responses", "no response to train on", fix))
            tokenized.append(
                tokenize_group(group, tokenizer, max_length=max_length, max_prompt_length=max_prompt_length)
            )
    problems.raise_any()
    return tokenized


def tokenize_prompt(prompt: Text, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that generation starts from: the whole prompt, a conversation up to the assistant's turn."""
    text = _prompt_text(prompt, tokenizer, "prompt")
    return _encode([text], tokenizer, plain=isinstance(prompt, str))[0]


def identity(tokenizer: PreTrainedTokenizerBase, max_length: int, max_prompt_length: int | None) -> dict[str, Any]:
    """Everything that changes the ids of a text, for a cache key. Holds no path."""
    return {
        "rules": RULES,
        "tokenizer": hashlib.sha256(_vocabulary(tokenizer).encode()).hexdigest(),
        "split_special_tokens": tokenizer.split_special_tokens,
        "chat_template": tokenizer.chat_template,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "max_length": max_length,
        "max_prompt_length": max_prompt_length,
    }


def require_usable(tokenizer: PreTrainedTokenizerBase, *, conversational: bool, where: str) -> None:
    """Check what tokenizing will need.

    Raises:
        InputError: no end-of-text token; conversations, but no chat template.
    """
    problems = []
    if tokenizer.eos_token_id is None:
        problems.append(Problem(where, "", "the tokenizer has no eos_token", "set it in tokenizer_config.json"))
    if conversational and not tokenizer.chat_template:
        fix = "use an instruction-tuned model, or plain text rows"
        problems.append(Problem(where, "", "the data is conversational, the tokenizer has no chat template", fix))
    if problems:
        raise InputError(problems)


def stop_ids(tokenizer: PreTrainedTokenizerBase, *, conversational: bool) -> list[int]:
    """The ids that end a response: end-of-text, and the chat template's end of turn where that is another."""
    ids = {tokenizer.eos_token_id}
    if conversational:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        whole = _encode([render_chat(turns, tokenizer, "probe")], tokenizer, plain=False)[0]
        ids.add(_end_once(whole, turns, tokenizer, _special_tokens(tokenizer))[-1])
    return sorted(ids)


# --- texts --------------------------------------------------------------------------------------------------


def _texts(group: PromptGroup, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The prompt, then prompt and response for each response, as the tokenizer is to read them."""
    texts = [_prompt_text(group.prompt, tokenizer, group.where)]
    for response in group.responses:
        if isinstance(group.prompt, str) and isinstance(response, str):
            texts.append(group.prompt + _without_eos(response, tokenizer))
        elif not isinstance(group.prompt, str) and not isinstance(response, str):
            *turns, last = response
            ended = {**last, "content": _without_eos(last["content"], tokenizer)}
            texts.append(render_chat([*group.prompt, *turns, ended], tokenizer, group.where))
        else:
            raise TypeError(f"{group.where}: plain text and conversation in one group")
    return texts


def _prompt_text(prompt: Text, tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    if isinstance(prompt, str):
        return prompt
    return render_chat(prompt, tokenizer, where, add_generation_prompt=True)


def render_chat(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    *,
    add_generation_prompt: bool = False,
    whose: str = "the",
) -> str:
    """A conversation as the tokenizer's chat template writes it.

    Args:
        where, whose: what an error names.

    Raises:
        InputError: the template refuses it.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        problem = f"{whose} chat template refuses roles {roles}: {error}"
        raise InputError(Problem(where, "prompt", problem, "give roles that the template takes")) from None
    return text


def _without_eos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text without the end-of-text tokens that it spells out at its end."""
    eos = tokenizer.eos_token
    while text.rstrip().endswith(eos):
        text = text.rstrip().removesuffix(eos)
    return text


def _count_special(group: PromptGroup, tokenizer: PreTrainedTokenizerBase, special: Mapping[int, str]) -> int:
    """Texts that spell out a special token. A plain prompt may: it can be a conversation written out."""
    texts = [] if isinstance(group.prompt, str) else [message["content"] for message in group.prompt]
    for response in group.responses:
        texts += [response] if isinstance(response, str) else [message["content"] for message in response]
    bodies = [_without_eos(text, tokenizer) for text in texts]
    return sum(any(token in body for token in special.values()) for body in bodies)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Ids and spelling of the tokens that stand for no text. The unknown token stands for some."""
    special = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    if tokenizer.unk_token_id != tokenizer.eos_token_id:
        special.pop(tokenizer.unk_token_id, None)
    return special


# --- ids ---------------------------------------------------------------------------------------------------


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase, *, plain: bool) -> list[list[int]]:
    """Ids of each text. The tokenizer adds its own beginning to plain text, a template has written it."""
    encoded = tokenizer(texts, add_special_tokens=plain, return_attention_mask=False, verbose=False)
    pairs = zip(encoded["input_ids"], texts, strict=True)
    return [_strip_added(ids, text, tokenizer) for ids, text in pairs]


def _strip_added(ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Without the end-of-text that some tokenizers append, and without a second beginning-of-text."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if ids[-1:] == [eos] and not text.rstrip().endswith(tokenizer.eos_token):
        ids = ids[:-1]
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _end_once(
    ids: list[int], prompt: Text, tokenizer: PreTrainedTokenizerBase, special: Mapping[int, str]
) -> list[int]:
    """A response's ids with one end: the template's end of turn if it wrote one, else end-of-text."""
    if not isinstance(prompt, str):
        last = max((i for i, token in enumerate(ids) if token in special), default=None)
        # Behind its end of turn a template may put a line break. Anything more is the response's own text.
        if last is not None and not tokenizer.decode(ids[last + 1 :]).strip():
            return ids[: last + 1]
    return [*ids, tokenizer.eos_token_id]


# --- checks ------------------------------------------------------------------------------------------------


def _check_lengths(max_length: int, max_prompt_length: int | None) -> None:
    if max_length < 2:
        problem = f"{max_length} leaves no room for a prompt and a response"
        raise InputError(Problem("data", "max_length", problem, "raise max_length"))
    if max_prompt_length is not None and not 0 < max_prompt_length < max_length:
        problem = f"a prompt of {max_prompt_length} tokens leaves no response within max_length {max_length}"
        fix = f"raise max_length, or set max_prompt_length from 1 to {max_length - 1}"
        raise InputError(Problem("data", "max_prompt_length", problem, fix))


def _check_nothing_empty(
    boundary: int, responses: Sequence[Sequence[int]], special: Mapping[int, str], where: str
) -> None:
    problems = []
    if boundary == 0:
        problem = "no token of the prompt stands before the responses, so their first token has nothing to follow"
        problems.append(Problem(where, "prompt", problem, "give a longer prompt, or end it on a token boundary"))
    for number, ids in enumerate(responses):
        if all(token in special for token in ids):
            problem = "the response has no token besides special ones"
            problems.append(Problem(where, f"responses[{number}]", problem, "write a response, or remove it"))
    if problems:
        raise InputError(problems)


# --- identity ----------------------------------------------------------------------------------------------


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that turns text into ids, as text. How a batch was last padded or cut does not belong to it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(
            [type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.special_tokens_map], sort_keys=True
        )
    rules = json.loads(backend.to_str())
    return json.dumps({name: value for name, value in rules.items() if name not in ("padding", "truncation")})
