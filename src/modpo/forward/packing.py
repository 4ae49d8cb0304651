"""Prompt groups laid out in one row without padding, and the way back to one number per response.

    row:        p p p p | a a a | b b b b | q q | c c c ...        p, q prompts; a, b responses to p; c to q
    positions:  0 1 2 3 | 4 5 6 | 4 5 6 7 | 0 1 | 2 3 4 ...        restart at the end of the prompt

A response attends to its prompt and to itself (`attention.py`). The prompt is read once: its last position predicts
the first token of every response. A response's last token is only ever predicted, so it is not read at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupSpan:
    """Where one prompt group lies in the row: the prompt in [start, prompt_end), then its responses."""

    start: int
    prompt_end: int
    responses: tuple[tuple[int, int], ...]  # (first, past the last) position read of each response

    @property
    def end(self) -> int:
        return self.responses[-1][1] if self.responses else self.prompt_end


@dataclass(frozen=True)
class PackedLayout:
    """What attention has to know of a packed row."""

    groups: tuple[GroupSpan, ...]
    length: int  # T, tokens in the row

    @cached_property
    def dense_mask(self) -> Tensor:
        """Which position attends to which, (T, T) bool: the slow truth that faster attention is tested against."""
        mask = torch.zeros(self.length, self.length, dtype=torch.bool)
        for group in self.groups:
            mask[group.start : group.end, group.start : group.prompt_end] = True
            for first, last in group.responses:
                mask[first:last, first:last] = True
        return mask & torch.ones_like(mask).tril()


@dataclass(frozen=True)
class PackedRow:
    """A packed row: what the model reads and what its positions predict.

    T tokens are read; N tokens, all those of the responses, are predicted; there are M responses.
    """

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T)
    predictors: Tensor  # (N,) position in the row that predicts each response token
    labels: Tensor  # (N,) the response tokens
    response_index: Tensor  # (N,) which response each of them belongs to
    responses: int  # M
    layout: PackedLayout

    def sum_by_response(self, of_tokens: Tensor) -> Tensor:
        """(N,) numbers of tokens, any float dtype -> (M,) sums over each response's, at least float32."""
        dtype = torch.promote_types(of_tokens.dtype, torch.float32)
        sums = torch.zeros(self.responses, dtype=dtype, device=of_tokens.device)
        return sums.index_add(0, self.response_index, of_tokens.to(dtype))

    def to(self, device: torch.device | str) -> PackedRow:
        """The same row with its tensors on `device`."""
        tensors = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return PackedRow(**tensors, responses=self.responses, layout=self.layout)


def pack(prompts_ids: Sequence[Sequence[int]], responses_ids: Sequence[Sequence[Sequence[int]]]) -> PackedRow:
    """Lay out G prompt groups in one row.

    Args:
        prompts_ids: G prompts of at least one token.
        responses_ids: for each prompt its responses, each of at least one token.

    Raises:
        ValueError: an empty prompt (nothing predicts the first token) or an empty response.
    """
    tokens: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    labels: list[int] = []
    response_index: list[int] = []
    groups: list[GroupSpan] = []
    count = 0
    for prompt, responses in zip(prompts_ids, responses_ids, strict=True):
        if not len(prompt):
            raise ValueError("a prompt has no token: nothing predicts the first token of its responses")
        start, prompt_end = len(tokens), len(tokens) + len(prompt)
        tokens.extend(prompt)
        positions.extend(range(len(prompt)))
        spans = []
        for response in responses:
            if not len(response):
                raise ValueError("a response has no token")
            first = len(tokens)
            tokens.extend(response[:-1])
            positions.extend(range(len(prompt), len(prompt) + len(response) - 1))
            predictors.append(prompt_end - 1)
            predictors.extend(range(first, len(tokens)))
            labels.extend(response)
            response_index.extend([count] * len(response))
            spans.append((first, len(tokens)))
            count += 1
        groups.append(GroupSpan(start, prompt_end, tuple(spans)))
    return PackedRow(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        predictors=torch.tensor(predictors),
        labels=torch.tensor(labels),
        response_index=torch.tensor(response_index),
        responses=count,
        layout=PackedLayout(tuple(groups), len(tokens)),
    )


def unpack(row: PackedRow) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The prompts and responses of which `pack` made a row."""
    tokens, lengths = row.input_ids[0].tolist(), torch.bincount(row.response_index, minlength=row.responses).tolist()
    responses = iter([part.tolist() for part in row.labels.split(lengths)])
    prompts = [tokens[group.start : group.prompt_end] for group in row.layout.groups]
    return prompts, [[next(responses) for _ in group.responses] for group in row.layout.groups]


def runs(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Consecutive items whose sizes add up to at most `limit`, one item at least: what one forward pass reads."""
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            yield slice(start, i)
            start, total = i, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def packed_tokens(prompt_ids: Sequence[int], responses_ids: Sequence[Sequence[int]]) -> int:
    """How many positions of a packed row one group takes."""
    return len(prompt_ids) + sum(len(response) - 1 for response in responses_ids)
