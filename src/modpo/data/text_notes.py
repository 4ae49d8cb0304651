"""What a user should know of how texts became ids: what was lost, changed or read otherwise, one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from modpo.data.group_texts import group_texts, unread
from modpo.data.prompt_group import PromptGroup, plain_text
from modpo.data.tokens import NO_LIMIT, tokenize_group, tokenize_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Counts of `TokenizedGroup`, from which the lines are made.
COUNTED = (
    "prompt_truncated",
    "responses_truncated",
    "merged_boundary",
    "special_in_text",
    "prompt_differs",
    "responses_changed",
    "unread",
)
SHOWN = 60  # characters of a text in an example


def text_notes(
    counts: Mapping[str, Sequence[int] | np.ndarray], groups: Sequence[PromptGroup], tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """One line for each kind of thing that happened, with how often, and an example where it takes one to see it.

    Args:
        counts: each of `COUNTED`, by group.
        groups: the groups that were tokenized.
    """
    totals = {name: int(np.sum(counts[name], dtype=np.int64)) for name in COUNTED}

    def example(name: str, shown: Callable[[PromptGroup, PreTrainedTokenizerBase], str]) -> str:
        return shown(groups[int(np.argmax(np.asarray(counts[name]) != 0))], tokenizer) if totals[name] else ""

    prompts, responses = totals["prompt_truncated"], totals["responses_truncated"]
    found = {
        f"{prompts} prompts lost their beginning and {responses} responses their end; fix: raise `max_length`": (
            prompts + responses
        ),
        f"{totals['merged_boundary']} responses share a token with the end of their prompt, which is cut before it; "
        "fix: end prompts with a line break": totals["merged_boundary"],
        f"{totals['special_in_text']} texts spell out a special token, which is read as one; "
        "fix: take it out where people wrote it": totals["special_in_text"],
        f"{totals['prompt_differs']} prompts are trained with another end than policies answer, for the chat template "
        f"writes it otherwise before an answer{example('prompt_differs', _two_prompts)}; fix: use a chat template that "
        "writes both alike, or write the difference into the responses": totals["prompt_differs"],
        f"{totals['responses_changed']} responses are not trained as they are written, for the chat template changes "
        f"them{example('responses_changed', _two_responses)}; fix: write them as the template does, or use another "
        "one": totals["responses_changed"],
        f"what {totals['unread']} rows say is not written by the chat template{example('unread', _unread)}; "
        "fix: take it out, or use a template that reads it": totals["unread"],
    }
    return [line for line, count in found.items() if count]


def _two_prompts(group: PromptGroup, tokenizer: PreTrainedTokenizerBase) -> str:
    trained = tokenizer.decode(tokenize_group(group, tokenizer, max_length=NO_LIMIT).prompt_ids)
    answered = tokenizer.decode(tokenize_prompt(group.prompt, tokenizer, group.template_kwargs))
    return f" (trained: {_tail(trained)}; answered: {_tail(answered)}; {group.where})"


def _two_responses(group: PromptGroup, tokenizer: PreTrainedTokenizerBase) -> str:
    texts = group_texts(group, tokenizer)
    first = next(i for i in range(len(texts.wholes)) if not texts.is_whole(i))
    written, trained = plain_text(texts.bodies[first]), texts.trained(first)
    return f" (written: {_ends(written)}; trained: {_ends(trained)}; {group.where})"


def _unread(group: PromptGroup, tokenizer: PreTrainedTokenizerBase) -> str:
    return f" ({', '.join(unread(group, tokenizer))}; {group.where})"


def _tail(text: str) -> str:
    return repr(text if len(text) <= SHOWN else "..." + text[-SHOWN:])


def _ends(text: str) -> str:
    """A text whose middle is left out where it is long."""
    half = SHOWN // 2
    return repr(text if len(text) <= SHOWN else f"{text[:half]} ... {text[-half:]}")
