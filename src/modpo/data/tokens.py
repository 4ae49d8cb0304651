"""Prompt groups into token ids. The only place that tokenizes training text.

The ids of a prompt and one of its responses, one after the other, are the ids of the whole text as the
tokenizer reads it, as in TRL's DPOTrainer. A conversation is what the chat template writes, to the end of the answer's
turn; where that holds no token that ends it, and behind plain text, stands end-of-text. The beginning of a next turn,
which some templates write behind every conversation, is no part of an answer. A special token that a text spells out
is read as one, in training as in generation; such texts are counted, and end no response early.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from modpo.base.errors import InputError, Problem, Problems
from modpo.data.chat_template import OTHER, PLAIN, QUESTION, TurnEnd, render_chat, template_of, template_variables
from modpo.data.group_texts import GroupTexts, group_texts, prompt_text, spelled_out, unread
from modpo.data.prompt_group import Message, PromptGroup, Text, plain_text
from modpo.experiment.chat_settings import FIELD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_LIMIT = 1 << 30  # tokens: more than any text has
RULES = 2  # raised whenever this package turns the same text into other ids


@dataclass(frozen=True)
class TokenizedGroup:
    """A prompt's ids once, and the ids that follow it for each response."""

    prompt_ids: list[int]
    responses_ids: list[list[int]]  # each ends with its turn, or end-of-text, unless it was cut
    prompt_truncated: bool  # the prompt lost its beginning
    responses_truncated: int  # how many responses lost their end
    merged_boundary: int  # how many responses share a token with the prompt's end
    special_in_text: int  # how many texts spell out a special token, which is read as one
    prompt_differs: bool  # policies answer another prompt: the chat template writes it otherwise before an answer
    responses_changed: int  # how many responses the chat template does not write word by word
    unread: int  # how many things that the rows say are not written by the chat template, see `group_texts.unread`


def tokenize_group(
    group: PromptGroup,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
) -> TokenizedGroup:
    """Tokenize a prompt and its responses.

    Where the texts of prompt and of prompt with response part before the prompt's end, or a token spans it, the prompt
    is cut before that place, for all responses.

    Args:
        max_length: most tokens of prompt and response together; a longer response loses its end.
        max_prompt_length: most tokens of the prompt, see `tokenize_prompt`. None: what the longest response leaves of
            `max_length`, but at least half of it.

    Raises:
        InputError: no response token or no prompt token is left, the chat template refuses the conversation,
            or the lengths leave no room.
    """
    return next(tokenize_together([group], tokenizer, max_length=max_length, max_prompt_length=max_prompt_length))


def tokenize_together(
    groups: Sequence[PromptGroup],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
) -> Iterator[TokenizedGroup]:
    """`tokenize_group` of each group, whose texts the tokenizer reads at once; groups are all of one kind.

    Raises:
        InputError: see `tokenize_group`, of the first group that something is wrong with.
    """
    _check_lengths(max_length, max_prompt_length)
    texts = [group_texts(group, tokenizer) for group in groups]
    plain = all(isinstance(group.prompt, str) for group in groups)
    ids = iter(_encode([text for of in texts for text in (of.prompt, *of.wholes)], tokenizer, plain=plain))
    known = _special_tokens(tokenizer)
    for group, of in zip(groups, texts, strict=True):
        prompt_ids, *whole_ids = islice(ids, 1 + len(of.wholes))
        special = known | set(of.turn.tokens.values())
        yield _tokenized(group, of, special, prompt_ids, whole_ids, tokenizer, max_length, max_prompt_length)


def _tokenized(
    group: PromptGroup,
    texts: GroupTexts,
    special: set[str],
    prompt_ids: list[int],
    whole_ids: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_prompt_length: int | None,
) -> TokenizedGroup:
    """A group whose texts were read.

    Args:
        special: spellings of the tokens that stand for no text. prompt_ids, whole_ids: of each text.
    """
    shared = [_common_prefix(prompt_ids, ids) for ids in whole_ids]
    boundary = min(shared)
    _check_nothing_empty(boundary, texts, special, group.where)
    eos = [tokenizer.eos_token_id]
    responses = [ids[boundary:] + eos * (not ended) for ids, ended in zip(whole_ids, texts.ended, strict=True)]
    if max_prompt_length is None:
        max_prompt_length = max(max_length // 2, max_length - max(map(len, responses)))
    behind = len(prompt_ids) - boundary  # tokens of the prompt that do not stand before the responses
    kept = _cut(group.prompt, prompt_ids, max_prompt_length + behind, tokenizer, group.template_kwargs)
    kept = kept[: len(kept) - behind]
    room = max_length - len(kept)
    differing = [texts.shared(i) < len(texts.prompt) for i in range(len(responses))]
    return TokenizedGroup(
        prompt_ids=kept,
        responses_ids=[ids[:room] for ids in responses],
        prompt_truncated=len(kept) < boundary,
        responses_truncated=sum(len(ids) > room for ids in responses),
        merged_boundary=sum(n < len(prompt_ids) and not other for n, other in zip(shared, differing, strict=True)),
        special_in_text=spelled_out(group, texts, special),
        prompt_differs=any(differing),
        responses_changed=sum(not texts.is_whole(i) for i in range(len(responses))),
        unread=len(unread(group, tokenizer)),
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
    groups = list(groups)
    with suppress(InputError):  # one by one, to find what is wrong with them
        if all(group.responses for group in groups):
            return list(
                tokenize_together(groups, tokenizer, max_length=max_length, max_prompt_length=max_prompt_length)
            )
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


def tokenize_prompt(
    prompt: Text,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Mapping[str, Any] | None = None,
    *,
    longest: int | None = None,
) -> list[int]:
    """The ids that generation starts from: the whole prompt, a conversation up to the assistant's turn.

    Args:
        template_kwargs: variables that the chat template gets besides the messages.
        longest: most tokens. Of a longer conversation the oldest turns go first, then the beginning of the newest one's
            content; a plain text loses its beginning. Beginning-of-text and system turn stay.
    """
    kwargs = template_kwargs or {}
    text = prompt_text(prompt, tokenizer, kwargs, "prompt")
    ids = _encode([text], tokenizer, plain=isinstance(prompt, str))[0]
    return ids if longest is None else _cut(prompt, ids, longest, tokenizer, kwargs)


def identity(tokenizer: PreTrainedTokenizerBase, max_length: int, max_prompt_length: int | None) -> dict[str, Any]:
    """Everything that changes the ids of a text, for a cache key. Holds no path.

    A template that asks for the time is one that sees a date of its own, see `modpo.data.clock`.
    """
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


def require_usable(
    tokenizer: PreTrainedTokenizerBase,
    *,
    conversational: bool,
    where: str,
    template_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Check what tokenizing will need.

    Args:
        template_kwargs: what is said for all rows.

    Raises:
        InputError: no end-of-text token; conversations, but no chat template; a variable that no template reads.
    """
    problems = []
    if tokenizer.eos_token_id is None:
        problems.append(Problem(where, "", "the tokenizer has no eos_token", "set it in tokenizer_config.json"))
    if conversational and not tokenizer.chat_template:
        fix = "use an instruction-tuned model, or plain text rows"
        problems.append(Problem(where, "", "the data is conversational, the tokenizer has no chat template", fix))
    elif conversational and not template_of(tokenizer):
        names = ", ".join(tokenizer.chat_template)
        problem = f"the tokenizer has several chat templates ({names}), and none is the default"
        problems.append(Problem(where, "", problem, "call one of them `default` in the model's folder"))
    known = template_variables(template_of(tokenizer)) if conversational and tokenizer.chat_template else frozenset()
    for name in template_kwargs or {}:
        if not conversational:
            fix = "leave it out, or give conversations"
            problems.append(Problem(where, f"{FIELD}.{name}", "has no effect on plain text", fix))
        elif template_of(tokenizer) and name not in known:
            problem = "the chat template of the model reads no such variable"
            problems.append(Problem(where, f"{FIELD}.{name}", problem, "leave it out, or mend its name"))
    if problems:
        raise InputError(problems)


def answer_text(
    ids: Sequence[int], ends: Iterable[int], tokenizer: PreTrainedTokenizerBase, turn: TurnEnd = PLAIN
) -> str:
    """An answer's words: without special tokens, and without what ended it, which may be no special token.

    Args:
        turn: how an answer's turn ends in the chat template; of plain texts it does not.
    """
    if ids and ids[-1] in set(ends):
        ids = ids[:-1]
    text: str = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return text if turn.tokens else text.removesuffix(turn.text.strip()).rstrip()


# --- a prompt that is too long ------------------------------------------------------------------------------


def _cut(
    prompt: Text, ids: list[int], longest: int, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]
) -> list[int]:
    """At most `longest` of a prompt's ids, as `tokenize_prompt` says."""
    if len(ids) <= longest:
        return ids
    if not isinstance(prompt, str):
        try:
            ids, opening = _newest(prompt, ids, longest, tokenizer, kwargs)
            if len(ids) <= longest or 4 * opening <= 3 * longest:  # else hardly anything of the question would be left
                return ids if len(ids) <= longest else ids[:opening] + ids[len(ids) - longest + opening :]
        except InputError:  # the template takes no part of the conversation
            pass
    opening = int(longest > 1 and ids[0] == tokenizer.bos_token_id)
    return ids[:opening] + ids[len(ids) - longest + opening :]


def _newest(
    prompt: list[Message], ids: list[int], longest: int, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]
) -> tuple[list[int], int]:
    """Ids of a conversation without its oldest turns, and how many stand before the first question's content.

    As many turns as are needed go, but never the newest question and what precedes all questions.
    """
    first = next((i for i, message in enumerate(prompt) if message["role"] == "user"), 0)
    for start in range(first + 1, len(prompt)):
        if prompt[start]["role"] == "user" and len(ids) > longest:
            ids = tokenize_prompt([*prompt[:first], *prompt[start:]], tokenizer, kwargs)
    probes = [
        render_chat([*prompt[:first], {"role": "user", "content": content}], tokenizer, "", template_kwargs=kwargs)
        for content in (QUESTION, OTHER)
    ]
    opening = _encode([os.path.commonprefix(probes)], tokenizer, plain=False)[0]  # noqa: RUF071 (it is of any texts)
    return ids, _common_prefix(ids, opening)


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


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Spelling of the tokens that stand for no text, but for ends of turns. The unknown token stands for some."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if tokenizer.unk_token_id != tokenizer.eos_token_id:
        special.discard(tokenizer.unk_token)
    return special


# --- checks ------------------------------------------------------------------------------------------------


def _check_lengths(max_length: int, max_prompt_length: int | None) -> None:
    if max_length < 2:
        problem = f"{max_length} leaves no room for a prompt and a response"
        raise InputError(Problem("data", "max_length", problem, "raise max_length"))
    if max_prompt_length is not None and not 0 < max_prompt_length < max_length:
        problem = f"a prompt of {max_prompt_length} tokens leaves no response within max_length {max_length}"
        fix = f"raise max_length, or set max_prompt_length from 1 to {max_length - 1}"
        raise InputError(Problem("data", "max_prompt_length", problem, fix))


def _check_nothing_empty(boundary: int, texts: GroupTexts, special: Collection[str], where: str) -> None:
    problems = []
    if boundary == 0:
        problem = "no token of the prompt stands before the responses, so their first token has nothing to follow"
        problems.append(Problem(where, "prompt", problem, "give a longer prompt, or end it on a token boundary"))
    for number, body in enumerate(texts.bodies):
        if _is_blank(plain_text(body), special):
            problem = "the response has no token besides special ones"
            problems.append(Problem(where, f"responses[{number}]", problem, "write a response, or remove it"))
        elif not isinstance(body, str) and _is_blank(texts.trained(number), special):
            problem = f"the chat template leaves nothing of the response {plain_text(body)!r:.60}"
            problems.append(Problem(where, f"responses[{number}]", problem, "write what it keeps, or remove it"))
    if problems:
        raise InputError(problems)


def _is_blank(text: str, special: Collection[str]) -> bool:
    """Whether a text is white space and special tokens."""
    if any(token in text for token in special):
        for token in sorted(special, key=len, reverse=True):
            text = text.replace(token, "")
    return not text.strip()


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
