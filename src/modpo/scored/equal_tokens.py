"""Responses that differ as text and not as tokens: to a policy they are one, and a pair of them teaches it nothing.

The cut to `max_length` makes responses equal, and so do a chat template that leaves out a part of a message and an end
token that one of them spells out. Their rewards may differ, so both are kept; pairs of the two are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from modpo.base.errors import InputError, Problem
from modpo.data.groups import PromptGroups
from modpo.data.prompt_group import Pair, PromptGroup
from modpo.data.tokens import NO_LIMIT, TokenizedGroup, tokenize_group
from modpo.scored.lists import is_first, lengths, sums

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def first_equal(responses_ids: Iterable[Sequence[int]]) -> list[int]:
    """Of each response the place of the first one with the same ids: its own, if no earlier one has them."""
    places: dict[tuple[int, ...], int] = {}
    return [places.setdefault(tuple(ids), place) for place, ids in enumerate(responses_ids)]


def differing(pairs: Iterable[Sequence[int]], first: Sequence[int]) -> list[Pair]:
    """The pairs whose responses differ as tokens.

    Args:
        first: of each response, see `first_equal`.
    """
    return [(chosen, rejected) for chosen, rejected in pairs if first[chosen] != first[rejected]]


@dataclass
class EqualTokens:
    """What prompt groups hold of such responses."""

    groups: PromptGroups
    responses: int = 0  # with the same tokens as an earlier one to their prompt
    group: int | None = None  # the first such prompt
    compared: int = 0  # prompts with two responses or more
    distinct: int = 0  # prompts with two responses that differ as tokens
    dropped: dict[str, int] = field(default_factory=dict)  # pairs, by objective
    kept: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, groups: PromptGroups, firsts: Iterable[Sequence[int]]) -> EqualTokens:
        """Count them.

        Args:
            firsts: `first_equal` of each of the groups, or of the first few.
        """
        found = cls(groups)
        for number, first in enumerate(firsts):
            equal = len(first) - len(set(first))
            found.responses += equal
            found.compared += len(first) > 1
            found.distinct += len(set(first)) > 1
            if equal and found.group is None:
                found.group = number
        return found

    @classmethod
    def of_column(cls, groups: PromptGroups, first_equal: Any) -> EqualTokens:
        """Count them as `of` does, in the column of that name of all groups."""
        sizes = lengths(first_equal)
        distinct = sums(is_first(first_equal), sizes)
        found = cls(groups, responses=int((sizes - distinct).sum()))
        found.compared, found.distinct = int((sizes > 1).sum()), int((distinct > 1).sum())
        if found.responses:
            found.group = int(np.argmax(sizes > distinct))
        return found

    @classmethod
    def of_tokenized(
        cls, groups: PromptGroups, tokenized: Sequence[TokenizedGroup], label_sets: Mapping[str, str]
    ) -> EqualTokens:
        """Count them in the first groups, or in all, before anything is scored.

        Args:
            label_sets: of each objective that has the data's pairs.
        """
        firsts = [first_equal(group.responses_ids) for group in tokenized]
        found = cls.of(groups, firsts)
        for name, label_set in label_sets.items():
            pairs = [groups[number].pairs.get(label_set, ()) for number in range(len(firsts))]
            kept = sum(len(differing(of, first)) for of, first in zip(pairs, firsts, strict=True))
            found.count_pairs(name, kept=kept, dropped=sum(map(len, pairs)) - kept)
        return found

    def count_pairs(self, objective: str, *, kept: int, dropped: int) -> None:
        """Take in how many pairs an objective has, and had."""
        self.kept[objective], self.dropped[objective] = kept, dropped

    @property
    def nothing_differs(self) -> str | None:
        """What there is nothing to train on for: an objective's pairs, or all responses."""
        lost = [f"all {n} pairs of {name}" for name, n in self.dropped.items() if n and not self.kept[name]]
        if self.compared and not self.distinct:
            lost.append(f"all responses of each of {self.compared} prompts")
        return lost[0] if lost else None

    def refuse(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Refuse data of which nothing is left.

        Raises:
            InputError: all pairs of an objective are dropped, or no prompt has two responses that differ as tokens.
        """
        if lost := self.nothing_differs:
            group, reason, fix = self._example(tokenizer, max_length)
            raise InputError(Problem(group.where, "pairs", f"{lost} have the same tokens: {reason}", fix))

    def warning(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str | None:
        """One line for the user, if there is something to say."""
        if not self.responses:
            return None
        group, reason, fix = self._example(tokenizer, max_length)
        pairs = ", ".join(f"{n} of {name}" for name, n in self.dropped.items() if n)
        dropped = f"pairs of the two are dropped ({pairs})" if pairs else "the two make no pair"
        what = f"{self.responses} responses have the same tokens as another to their prompt, so {dropped}"
        return f"{what}; {group.where}, for example: {reason}; fix: {fix}"

    def _example(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[PromptGroup, str, str]:
        """The first such group, what made its responses equal, and what helps."""
        assert self.group is not None
        group = self.groups[self.group]
        whole = first_equal(tokenize_group(group, tokenizer, max_length=NO_LIMIT).responses_ids)
        if len(set(whole)) == len(whole):
            return group, f"they differ behind `max_length` {max_length} only", "raise `max_length`"
        reason = "the tokenizer and its chat template leave out what differs"
        return group, reason, "use a chat template that keeps it, or other responses"
