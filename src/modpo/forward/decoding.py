"""Answers of a model that reads packed rows: a prompt is read once for all of them, and what has ended leaves.

A batch holds prompts and the answers to them that have not ended. When a quarter of it is free, new prompts join.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modpo.base.costs import count
from modpo.forward.decode_attention import DecodingCache, LayerCache, Places
from modpo.forward.frozen import TOKENS_PER_FORWARD
from modpo.forward.packing import pack, runs
from modpo.forward.sampled import SampledAnswer, SamplingSettings
from modpo.forward.sampling import sample_tokens, uniforms

CROWDED = 0.75  # taken share of a batch below which its cache is made smaller, and new prompts join


@dataclass(frozen=True)
class Asked:
    """A prompt, and which of the answers to it are made together."""

    prompt: int
    numbers: range


@dataclass
class Growing:
    """An answer in the making."""

    prompt: int
    number: int  # among the answers to that prompt
    ids: list[int]
    logp: float = 0.0


@dataclass(frozen=True)
class Batch:
    """R answers in the making to G prompts that were read; the tensors are on the model's device."""

    cache: DecodingCache
    lengths: Tensor  # (G,) tokens of each prompt
    rows: list[Growing]  # R
    group: Tensor  # (R,) which of the G prompts
    number: Tensor  # (R,) which of the prompt's places in the cache
    made: Tensor  # (R,) tokens of each answer so far
    token: Tensor  # (R,) the last of them
    at: Tensor  # (R, max_new_tokens) float64, where in their distributions the tokens are drawn

    @property
    def places(self) -> Places:
        """Where the next pass writes and looks."""
        layer = self.cache.any_layer
        n, written = layer.keys.shape[2], self.made - 1
        there = torch.zeros(len(self.lengths), n, dtype=torch.long, device=self.made.device)
        there[self.group, self.number] = self.made
        no_prompt = _beyond(self.lengths, layer.prompt_keys.shape[2])[:, None, :].expand(-1, n, -1)
        no_answer = _beyond(there, layer.keys.shape[3])
        hidden = torch.cat([no_prompt, no_answer], -1)[:, None, :, None]
        bias = torch.zeros(hidden.shape, dtype=layer.keys.dtype, device=hidden.device)
        bias = bias.masked_fill_(hidden, float("-inf"))
        return Places(self.group, self.number, written, bias, full=len(self.rows) == len(self.lengths) * n)

    def of_rows(self, kept: list[int]) -> Batch:
        """Some of the answers; the others leave their places empty."""
        if len(kept) == len(self.rows):
            return self
        index = torch.tensor(kept, dtype=torch.long, device=self.made.device)
        of_rows = {name: getattr(self, name)[index] for name in ("group", "number", "made", "token", "at")}
        return replace(self, rows=[self.rows[i] for i in kept], **of_rows)

    def compact(self) -> Batch:
        """The same without prompts that have no answer left, with as few places as fit."""
        groups, group, answers = self.group.unique_consecutive(return_inverse=True, return_counts=True)
        if len(groups) * int(answers.max()) > CROWDED * self.cache.any_layer.size:
            return self  # the prompt with the most answers decides how many places each one has: little would be gained
        first = answers.cumsum(0) - answers
        number = torch.arange(len(group), device=group.device) - first[group]
        numbers = torch.zeros(len(groups), int(answers.max()), dtype=torch.long, device=group.device)
        numbers[group, number] = self.number
        cache = self.cache.each(LayerCache.select, groups, numbers, int(self.made.max()))
        return replace(self, cache=cache, lengths=self.lengths[groups], group=group, number=number)

    def joined(self, other: Batch) -> Batch:
        """With another below."""
        both = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in ("lengths", "number", "made")}
        both |= {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in ("token", "at")}
        group = torch.cat([self.group, other.group + len(self.lengths)])
        return Batch(self.cache.joined(other.cache), rows=self.rows + other.rows, group=group, **both)


class Decoder:
    """Samples from a model whose attention is `modpo_decoding`.

    Args:
        model: bare, or the model below its adapters.
        prompts_ids: token ids of N prompts.
        advance: told how many answers more are done, in fractions while they are made.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts_ids: Sequence[Sequence[int]],
        settings: SamplingSettings,
        advance: Callable[[float], None],
    ) -> None:
        self.model, self.prompts_ids, self.settings, self.advance = model, prompts_ids, settings, advance
        self.device = next(model.parameters()).device
        self.ended: dict[tuple[int, int], SampledAnswer] = {}  # by prompt and number

    def decode(self, order: Sequence[int], batch_size: int) -> list[list[SampledAnswer]]:
        """All answers to the prompts, of which `order` says which one is read next.

        Args:
            batch_size: answers at a time. A prompt with more of them is read more than once.
        """
        n, batch = self.settings.answers_per_prompt, None
        waiting = [Asked(i, range(j, min(j + batch_size, n))) for i in order for j in range(0, n, batch_size)]
        while waiting or batch:
            taken = len(batch.rows) if batch else 0
            joining = _that_fit(waiting, batch_size - taken) if taken <= CROWDED * batch_size else []
            for part in self._passes(joining):
                read = self._read(part)
                batch = batch.joined(read) if batch and read else batch or read
            waiting = waiting[len(joining) :]
            if batch:
                batch = self._step(batch)
        return [[self.ended[i, j] for j in range(n)] for i in range(len(self.prompts_ids))]

    def _passes(self, asked: Sequence[Asked]) -> Iterator[Sequence[Asked]]:
        """What is read in one forward pass each."""
        for part in runs([len(self.prompts_ids[one.prompt]) for one in asked], TOKENS_PER_FORWARD):
            yield asked[part]

    def _read(self, asked: Sequence[Asked]) -> Batch | None:
        """Read prompts, each once, and draw the first tokens of its answers; None: no answer has more."""
        ids, sizes = [self.prompts_ids[one.prompt] for one in asked], [len(one.numbers) for one in asked]
        row, cache = pack(ids, [[] for _ in ids]), DecodingCache()
        hidden = self._hidden(row.input_ids, row.position_ids, packed=row.layout, decoding=cache, answers=max(sizes))
        rows = [Growing(one.prompt, j, []) for one in asked for j in one.numbers]
        group = torch.arange(len(ids)).repeat_interleave(torch.tensor(sizes))
        last = torch.tensor([span.prompt_end - 1 for span in row.layout.groups])
        none = torch.zeros(len(rows), dtype=torch.long, device=self.device)
        batch = Batch(
            cache,
            torch.tensor([len(one) for one in ids], device=self.device),
            rows,
            group=group.to(self.device),
            number=torch.cat([torch.arange(size) for size in sizes]).to(self.device),
            made=none,
            token=none,
            at=torch.stack([uniforms(self.settings, one.prompt, one.number) for one in rows]).to(self.device),
        )
        return self._drawn(batch, hidden[last[group].to(self.device)])

    def _step(self, batch: Batch) -> Batch | None:
        """Read the last token of every answer and draw the next; None: every answer has ended."""
        if int(batch.made.max()) > batch.cache.any_layer.keys.shape[3]:
            batch = replace(batch, cache=batch.cache.each(LayerCache.grown))
        positions = batch.lengths[batch.group] + batch.made - 1
        hidden = self._hidden(batch.token[None], positions[None], decoding=batch.cache, places=batch.places)
        return self._drawn(batch, hidden)

    def _hidden(self, input_ids: Tensor, position_ids: Tensor, **more: object) -> Tensor:
        """Last hidden states of a row of T tokens, (T, H)."""
        inputs = {"input_ids": input_ids.to(self.device), "position_ids": position_ids.to(self.device)}
        read: Tensor = self.model.base_model(**inputs, use_cache=False, **more).last_hidden_state
        count(forward_passes=1)
        return read[0]

    def _drawn(self, batch: Batch, hidden: Tensor) -> Batch | None:
        """The batch with one token more for every answer, drawn at hidden states (R, H), without those it ends."""
        logits = self.model.get_output_embeddings()(hidden)
        at = batch.at.gather(1, batch.made[:, None])[:, 0]
        token, logps = sample_tokens(logits, at, self.settings.temperature)
        going = []
        for i, (row, new, logp) in enumerate(zip(batch.rows, token.tolist(), logps.tolist(), strict=True)):
            row.ids.append(new)
            row.logp += logp
            if new in self.settings.ends or len(row.ids) == self.settings.max_new_tokens:
                self._end(row)
            else:
                going.append(i)
        self.advance(len(going) / self.settings.max_new_tokens)
        batch = replace(batch, made=batch.made + 1, token=token).of_rows(going)
        if not going:
            return None
        return batch.compact() if len(going) < CROWDED * batch.cache.any_layer.size else batch

    def _end(self, row: Growing) -> None:
        self.ended[row.prompt, row.number] = SampledAnswer(row.ids, row.logp)
        count(tokens_generated=len(row.ids))
        self.advance(1 - (len(row.ids) - 1) / self.settings.max_new_tokens)


def _that_fit(waiting: Sequence[Asked], room: int) -> Sequence[Asked]:
    """The first that ask for at most so many answers together."""
    up_to = accumulate(len(one.numbers) for one in waiting)
    return waiting[: sum(1 for _ in takewhile(lambda total: total <= room, up_to))]


def _beyond(there: Tensor, length: int) -> Tensor:
    """(...) numbers of keys that are there -> (..., length) bool: those that are not."""
    return torch.arange(length, device=there.device) >= there[..., None]
