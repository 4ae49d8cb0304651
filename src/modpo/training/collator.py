"""From scored rows to batches: a batch says what to read, which responses form pairs, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from modpo.base.simplex import Weights
from modpo.experiment.primary import Choice, Margins, able_objectives, active_objectives, choose
from modpo.forward.packing import pack, packed_tokens, runs
from modpo.scored.calibration import UNCALIBRATED, Calibration
from modpo.scored.data import PAIRS_PREFIX, REWARD_PREFIX
from modpo.scored.lists import flat, lengths, pairs_of_rows, starts, sums

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ReadGroup:
    """What is read of one prompt group: the responses that stand in one of its pairs, and no other."""

    prompt_ids: list[int]
    responses_ids: list[list[int]]
    ref_logps: list[float]
    pairs: list[tuple[int, int]]  # indices into these responses
    primaries: list[int]  # of each pair the primary objective, see `primary.Choice`
    margins: list[list[float]]  # one list of K per response; 0 where it has none

    @property
    def pair_tokens(self) -> int:
        """Tokens of prompt and chosen, prompt and rejected of each pair."""
        return sum(len(self.prompt_ids) + len(self.responses_ids[i]) for pair in self.pairs for i in pair)


@dataclass
class GroupCollator:
    """Scored prompt groups -> one batch.

    Args:
        weights: the preference vector.
        signs: what each calibrated reward is multiplied by; 1 where not given.
        calibrations: how raw rewards become comparable; as they are where not given.
        objective: objective k, where it is named.
        regression_below: weight of k from which on its pairs are read, see `modpo.experiment.primary`.
        packing: whether to lay the groups of a part out in one row.
        max_packed_tokens: see `MODPOConfig`.
    """

    weights: Weights
    signs: Mapping[str, float] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    objective: str | None = None
    regression_below: float = 0.0
    packing: bool = True
    max_packed_tokens: int = 2048

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """One batch from some rows.

        Returns:
            `parts`, each from consecutive groups of at most `max_packed_tokens` together (one group at least), see
            `part`.
        """
        groups = [self.group(row) for row in rows]
        sizes = [packed_tokens(group.prompt_ids, group.responses_ids) for group in groups]
        return {"parts": [self.part(groups[part]) for part in runs(sizes, self.max_packed_tokens)]}

    def trained(self, rows: Any) -> np.ndarray:
        """Which rows hold something to train on, (rows,) bool: those of which a choice has pairs.

        Of all rows at once: `choices` of a million would take minutes.

        Args:
            rows: a `pyarrow.Table` of what decides it.
        """
        names = [name for name in self.weights if REWARD_PREFIX + name in rows.column_names]
        known = {name: self._known(name, flat(rows.column(REWARD_PREFIX + name))) for name in names}
        pairs = {name for name in self.weights if PAIRS_PREFIX + name in rows.column_names}
        sizes, active = lengths(rows.column("ref_logps")), active_objectives(self.weights)
        first, found = starts(sizes), np.zeros(len(rows), dtype=bool)

        def all_known(others: Sequence[str]) -> np.ndarray:
            return np.logical_and.reduce([known[name] for name in others], initial=True, axis=0)

        for name in able_objectives(self.weights, pairs, known, self.objective):
            places, row = pairs_of_rows(rows.column(PAIRS_PREFIX + name))
            of_responses = np.broadcast_to(all_known([n for n in active if n != name]), sizes.sum())
            found[row[of_responses[first[row][:, None] + places].all(axis=1)]] = True
        if all(name in known for name in active):  # then every two responses that differ are regressed on
            found |= self._compared(rows, sizes, np.broadcast_to(all_known(active), sizes.sum()))
        return found

    def _known(self, name: str, scores: Any) -> np.ndarray:
        """Which responses have a margin reward, (responses,) bool, of their scores."""
        filled = self.calibrations.get(name, UNCALIBRATED).fill is not None
        return np.ones(len(scores), dtype=bool) if filled else scores.is_valid().to_numpy(zero_copy_only=False)

    def _compared(self, rows: Any, sizes: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Which rows have two responses that differ as tokens and are both `known`, (responses,) bool."""
        if "first_equal" not in rows.column_names:
            return sums(known, sizes) > 1
        # Of responses with the same tokens one that is known counts.
        group = flat(rows.column("first_equal")).to_numpy() + np.repeat(starts(sizes), sizes)
        distinct = np.zeros(len(known), dtype=bool)
        distinct[group[known]] = True
        return sums(distinct, sizes) > 1

    def choices(self, row: Row) -> list[Choice]:
        """The primary objective of a row, and the pairs it is trained on. Of MODPO there is one."""
        pairs = {name: row[PAIRS_PREFIX + name] for name in self.weights if PAIRS_PREFIX + name in row}
        margins, responses = self.margins(row), len(row["ref_logps"])
        first = row.get("first_equal")  # rows that were scored by hand may lack it
        return [choose(self.weights, pairs, margins, responses, self.objective, self.regression_below, first)]

    def margins(self, row: Row) -> dict[str, Margins]:
        """Margin rewards of a row's responses, by objective: as many numbers as the row has responses."""
        return {
            name: [
                self.calibrations.get(name, UNCALIBRATED).apply(score, self.signs.get(name, 1.0))
                for score in row[REWARD_PREFIX + name]
            ]
            for name in self.weights
            if REWARD_PREFIX + name in row
        }

    def group(self, row: Row) -> ReadGroup:
        """What is read of a row."""
        choices, margins = self.choices(row), self.margins(row)
        pairs = [pair for choice in choices for pair in choice.pairs]
        read = sorted({i for pair in pairs for i in pair})
        place = {i: n for n, i in enumerate(read)}
        nothing = [0.0] * len(row["ref_logps"])
        return ReadGroup(
            prompt_ids=row["prompt_ids"],
            responses_ids=[row["responses_ids"][i] for i in read],
            ref_logps=[row["ref_logps"][i] for i in read],
            pairs=[(place[chosen], place[rejected]) for chosen, rejected in pairs],
            primaries=[choice.k for choice in choices for _ in choice.pairs],
            margins=[[margins.get(name, nothing)[i] or 0.0 for name in self.weights] for i in read],
        )

    def part(self, groups: Sequence[ReadGroup]) -> dict[str, Any]:
        """What is read in one forward pass: B pairs of M responses, K objectives.

        Returns:
            `weights` (K,) float64, `pairs` (B, 2) of indices into the responses, their `primaries` (B,), `ref_logps`
            (M,) in nats, `margins` (M, K), what is read: `packed_row`, or `prompts_ids` and `responses_ids`, and of
            how many `tokens`, without padding. For the logs, `pair_counts` of the prompts, and `num_tokens`
            of prompt and chosen, prompt and rejected of all pairs.
        """
        pairs: list[list[int]] = []
        first = 0
        for group in groups:
            pairs += [[first + chosen, first + rejected] for chosen, rejected in group.pairs]
            first += len(group.responses_ids)
        margins = [row for group in groups for row in group.margins]
        batch = {
            "weights": torch.tensor(list(self.weights.values()), dtype=torch.float64),
            "pairs": torch.tensor(pairs).reshape(-1, 2),
            "primaries": torch.tensor([k for group in groups for k in group.primaries]),
            "ref_logps": torch.tensor([logp for group in groups for logp in group.ref_logps], dtype=torch.float32),
            "margins": torch.tensor(margins, dtype=torch.float32).reshape(first, len(self.weights)),
            "pair_counts": torch.tensor([len(group.pairs) for group in groups]),
            "num_tokens": sum(group.pair_tokens for group in groups),
        }
        prompts, responses = [g.prompt_ids for g in groups], [g.responses_ids for g in groups]
        if self.packing:
            row = pack(prompts, responses)
            return {**batch, "packed_row": row, "tokens": row.layout.length}
        tokens = sum(len(group.prompt_ids) + len(ids) for group in groups for ids in group.responses_ids)
        return {**batch, "prompts_ids": prompts, "responses_ids": responses, "tokens": tokens}
