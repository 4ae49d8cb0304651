"""Lengths of tokenized prompt groups, what was cut off them, and the tokens that each way of reading them takes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from modpo.data.prompt_group import Pair
from modpo.data.tokens import TokenizedGroup
from modpo.forward.packing import runs
from modpo.inspection.estimate import Work, packed_work, padded_work

Lengths = tuple[int, list[int]]  # tokens of a prompt, tokens of each of its responses


@dataclass(frozen=True)
class Spread:
    """How some lengths are distributed, tokens."""

    minimum: int
    median: float
    percentile_95: float
    maximum: int


@dataclass(frozen=True)
class TokenStatistics:
    """The result of tokenizing some prompt groups."""

    groups: int
    prompts: Spread
    responses: Spread
    together: Spread  # prompt and response, as max_length counts them
    prompts_truncated: int
    responses_truncated: int
    merged_boundary: int  # responses that share a token with the prompt's end
    special_in_text: int  # texts that spell out a special token


@dataclass(frozen=True)
class Reading:
    """Tokens that one epoch over the pairs of some groups reads."""

    packed: int  # each prompt once for all its responses
    separate: int  # chosen and rejected of each pair with their prompt, without padding
    padded: int  # the same, padded to the longest of each batch, as TRL's DPOTrainer reads them

    @property
    def ratio(self) -> float:
        """How many times more the padded reading takes."""
        return self.padded / self.packed if self.packed else float("nan")


def lengths_of(group: TokenizedGroup) -> Lengths:
    """The group's lengths, tokens."""
    return len(group.prompt_ids), [len(ids) for ids in group.responses_ids]


def token_statistics(groups: Sequence[TokenizedGroup]) -> TokenStatistics:
    """Lengths as they are read, that is after truncation, and what was cut. At least one group."""
    lengths = [lengths_of(group) for group in groups]
    return TokenStatistics(
        groups=len(groups),
        prompts=_spread([prompt for prompt, _ in lengths]),
        responses=_spread([n for _, responses in lengths for n in responses]),
        together=_spread([prompt + n for prompt, responses in lengths for n in responses]),
        prompts_truncated=sum(group.prompt_truncated for group in groups),
        responses_truncated=sum(group.responses_truncated for group in groups),
        merged_boundary=sum(group.merged_boundary for group in groups),
        special_in_text=sum(group.special_in_text for group in groups),
    )


def _spread(values: Sequence[int]) -> Spread:
    median, percentile = np.percentile(values, [50, 95])
    return Spread(min(values), float(median), float(percentile), max(values))


def reading(groups: Sequence[Lengths], pairs: Sequence[Sequence[Pair]], batch_size: int, seed: int) -> Reading:
    """Tokens read in one epoch.

    Args:
        groups, pairs: of the same prompts. A prompt without pairs is not read.
        batch_size: pairs in a padded batch, so twice as many sequences.
        seed: of the order in which pairs come into batches.
    """
    packed = sum(packed_work(*lengths).read for lengths, paired in zip(groups, pairs, strict=True) if paired)
    both = [
        (prompt + responses[chosen], prompt + responses[rejected])
        for (prompt, responses), paired in zip(groups, pairs, strict=True)
        for chosen, rejected in paired
    ]
    random.Random(seed).shuffle(both)
    batches = [both[i : i + batch_size] for i in range(0, len(both), batch_size)]
    padded = sum(2 * len(batch) * max(max(pair) for pair in batch) for batch in batches)
    return Reading(int(packed), sum(map(sum, both)), padded)


def forward_passes(
    groups: Sequence[Lengths], *, batch_size: int, most_tokens: int, packing: bool, seed: int
) -> list[Work]:
    """The work of each forward pass of one epoch: batches of groups in a shuffled order, in parts as they are trained.

    Args:
        batch_size: groups in a batch. most_tokens: packed tokens in a part, but one group at least.
    """
    order = list(groups)
    random.Random(seed).shuffle(order)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    parts = [part for batch in batches for part in parts_of(batch, most_tokens)]
    return [_together(part) if packing else padded_work(part) for part in parts]


def parts_of(batch: Sequence[Lengths], most_tokens: int) -> list[Sequence[Lengths]]:
    """A batch as `collator.GroupCollator` reads it: runs of groups of at most so many packed tokens, one at least."""
    return [batch[part] for part in runs([round(packed_work(*lengths).read) for lengths in batch], most_tokens)]


def _together(part: Iterable[Lengths]) -> Work:
    return sum((packed_work(*lengths) for lengths in part), start=Work())
