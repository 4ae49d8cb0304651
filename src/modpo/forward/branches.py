"""A packed row cut into branches, and branches of like length into batches: what attention multiplies at a time.

A branch is at most `BRANCH_ROWS` consecutive positions: of a prompt, or of a response. It sees a prefix, which is all
that its positions see in common, and of itself what is not later. Short branches are padded to one shape and multiplied
together, so that a row of many short groups costs as few operations as a row of one long group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from modpo.forward.packing import PackedLayout

Span = tuple[int, int]

BRANCH_ROWS = 128  # query rows of a branch: large enough for full matmul speed, small enough to stay in cache
BATCH_SCORES = 1 << 16  # rows times keys of all branches of a batch, padding with them
WIDTH = 32  # keys are padded to a multiple: a softmax in 16 bits takes twice as long at other widths
SIZES = tuple(WIDTH * n for n in (1, 2, 3, 4, 6, 8))  # branches up to the same size share a batch


@dataclass(frozen=True)
class Branch:
    """Positions [first, last), which see all of their prefix and, causally, themselves."""

    first: int
    last: int
    prefix: tuple[Span, ...]

    @property
    def rows(self) -> int:
        return self.last - self.first

    @property
    def seen(self) -> int:
        """Positions of the prefix."""
        return sum(b - a for a, b in self.prefix)


@dataclass(frozen=True)
class Batch:
    """B branches, padded to R rows, P positions of a prefix and K = P + R keys; H_kv key heads.

    Rows of key heads are those of (T, H_kv) tensors laid out one after the other.

    Attributes:
        branches: B. R, P: see above.
        rows: (B H_kv R,) row of each branch's own positions; padding repeats the last.
        keys: (B H_kv K,) row of each key, those of the prefix first.
        bias: (B, 1, R, 1, C), added to the scores of the last C keys: -inf where a row does not see a key.
        real: (B, 1, R, 1), 0 at padded rows; None: there are none.
        prefixes: the S different prefixes of the branches.
        members: (S, B), 1 where a branch has the prefix; None: each has its own.
    """

    branches: int
    R: int
    P: int
    rows: Tensor
    keys: Tensor
    bias: Tensor
    real: Tensor | None
    prefixes: tuple[tuple[Span, ...], ...]
    members: Tensor | None


@dataclass(frozen=True)
class Plan:
    """All batches of a row, and of each of its T H_kv rows the place among theirs, (T H_kv,)."""

    batches: tuple[Batch, ...]
    places: Tensor


@lru_cache(maxsize=8)  # every layer of a forward and a backward pass asks for the same
def plan(layout: PackedLayout, kv_heads: int, dtype: torch.dtype, device: torch.device) -> Plan:
    """How a row of that layout is multiplied."""
    places = torch.empty(layout.length, kv_heads, dtype=torch.long)
    batches, start = [], 0
    for branches in _alike(layout):
        batch = _batch(branches, kv_heads, dtype, device)
        at = torch.arange(start, start + len(batch.rows)).view(len(branches), kv_heads, batch.R)
        for b, branch in enumerate(branches):
            places[branch.first : branch.last] = at[b, :, : branch.rows].T
        batches.append(batch)
        start += len(batch.rows)
    return Plan(tuple(batches), places.view(-1).to(device))


def branches_of(layout: PackedLayout) -> Iterator[Branch]:
    """The branches of a row. Together they cover each position once."""
    for group in layout.groups:
        yield from _causal((), group.start, group.prompt_end)
        for first, last in group.responses:
            yield from _causal(((group.start, group.prompt_end),), first, last)


def _causal(before: tuple[Span, ...], first: int, last: int) -> Iterator[Branch]:
    for start in range(first, last, BRANCH_ROWS):
        own = ((first, start),) if start > first else ()
        yield Branch(start, min(start + BRANCH_ROWS, last), (*before, *own))


def _alike(layout: PackedLayout) -> Iterator[list[Branch]]:
    """Branches of like length together, at most BATCH_SCORES scores; those of a group stay side by side."""
    shelves: dict[tuple[int, int], list[Branch]] = {}
    for branch in branches_of(layout):
        shelves.setdefault((_size(branch.rows), _size(branch.seen)), []).append(branch)
    for shelf in shelves.values():
        rows, seen = max(branch.rows for branch in shelf), max(branch.seen for branch in shelf)
        count = max(1, BATCH_SCORES // (rows * (rows + seen)))
        yield from (shelf[i : i + count] for i in range(0, len(shelf), count))


def _size(length: int) -> int:
    """0, the next of SIZES, or beyond them the length itself."""
    return next((size for size in (0, *SIZES) if size >= length), length)


def _batch(branches: list[Branch], kv_heads: int, dtype: torch.dtype, device: torch.device) -> Batch:
    R, P = max(b.rows for b in branches), max(b.seen for b in branches)
    if len(branches) > 1:
        P += -(P + R) % WIDTH
    own = torch.stack([_padded(range(b.first, b.last), R) for b in branches])  # (B, R)
    before = torch.stack([_padded((t for a, z in b.prefix for t in range(a, z)), P) for b in branches])  # (B, P)
    even = all(b.rows == R and b.seen == P for b in branches)
    lengths, seen = (torch.tensor([getattr(b, name) for b in branches])[:, None] for name in ("rows", "seen"))
    hidden = torch.ones(R, R, dtype=torch.bool).triu(1).expand(len(branches), R, R)
    if not even:
        hidden = hidden | (torch.arange(R) >= lengths)[:, None]
        unseen = (torch.arange(P) >= seen)[:, None].expand(-1, R, P)
        hidden = torch.cat([unseen, hidden], dim=2)
    bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    real = None if even else (torch.arange(R) < lengths).to(dtype)[:, None, :, None].to(device)
    prefixes = tuple(dict.fromkeys(b.prefix for b in branches))
    members = torch.tensor([[b.prefix == prefix for b in branches] for prefix in prefixes], dtype=dtype)
    return Batch(
        branches=len(branches),
        R=R,
        P=P,
        rows=_of_heads(own, kv_heads).to(device),
        keys=_of_heads(torch.cat([before, own], dim=1), kv_heads).to(device),
        bias=bias[:, None, :, None].to(device),
        real=real,
        prefixes=prefixes,
        members=None if len(prefixes) == len(branches) else members.to(device),
    )


def _padded(positions: Iterable[int], length: int) -> Tensor:
    """(length,): the positions, then the last of them again and again; 0 where there are none."""
    given = list(positions)
    return torch.tensor(given + [given[-1] if given else 0] * (length - len(given)), dtype=torch.long)


def _of_heads(positions: Tensor, kv_heads: int) -> Tensor:
    """(B, n) positions -> (B H_kv n,) rows of (T, H_kv) tensors."""
    return (positions[:, None, :] * kv_heads + torch.arange(kv_heads)[:, None]).reshape(-1)
