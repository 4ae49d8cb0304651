"""`LossWeightingTrainer`: DPO on each objective's own pairs, their losses weighted by the preference vector.

    L(w) = sum_i w_i mean over the pairs of objective i of -log sigmoid(beta [D(chosen) - D(rejected)])

The baseline "DPO LW" of Zhou et al., "Beyond One-Preference-Fits-All Alignment", arXiv 2310.03708. No reward enters:
where two objectives order a pair differently, their losses pull against each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from modpo.base.errors import InputError, Problem
from modpo.experiment.primary import Choice, Margins
from modpo.scored.data import PAIRS_PREFIX
from modpo.scored.lists import lengths
from modpo.training.collator import GroupCollator, Row
from modpo.training.loss import modpo_loss, pair_logps
from modpo.training.trainer import MODPOTrainer


class OwnPairs(GroupCollator):
    """Scored prompt groups -> one batch, with the pairs of every objective that has a weight, and no margins."""

    def trained(self, rows: Any) -> np.ndarray:
        """Which rows hold something to train on, (rows,) bool: those with pairs of an objective that has a weight."""
        named = [PAIRS_PREFIX + name for name, weight in self.weights.items() if weight > 0]
        counts = [lengths(rows.column(name)) > 0 for name in named if name in rows.column_names]
        return np.logical_or.reduce(counts, axis=0) if counts else np.zeros(len(rows), dtype=bool)

    def choices(self, row: Row) -> list[Choice]:
        """The pairs of a row, by objective."""
        named = [(k, row.get(PAIRS_PREFIX + name)) for k, (name, w) in enumerate(self.weights.items()) if w > 0]
        return [Choice(k, [(chosen, rejected) for chosen, rejected in pairs]) for k, pairs in named if pairs]

    def margins(self, row: Row) -> dict[str, Margins]:
        """None enter."""
        return {}


class LossWeightingTrainer(MODPOTrainer):
    """Trains one policy for one preference vector by DPO with weighted losses. Used as `MODPOTrainer` is."""

    collator_class = OwnPairs

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pair_weights = torch.tensor(pair_weights(self.train_dataset, self.args.vector))

    def _pair_losses(self, logps: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """DPO's loss of each pair times the weight of the pair, and the implicit rewards, (B,) each."""
        four, none = pair_logps(logps, inputs["ref_logps"], inputs["pairs"]), logps.new_zeros(len(inputs["pairs"]), 0)
        settings = {"weights": (1.0,), "beta": self.beta, "loss_type": self.loss_types[0]}
        losses, *rewards = modpo_loss(*four, none, none, **settings)
        return losses * self._pair_weights.to(losses)[inputs["primaries"]], rewards[0], rewards[1]


def pair_weights(rows: Dataset, weights: Mapping[str, float]) -> Sequence[float]:
    """The weight of a pair of each objective: w_i times all pairs over those of objective i, (K,).

    The mean over all pairs is then L(w), however many pairs each objective has. An objective without a weight counts 0.

    Raises:
        InputError: an objective with a weight has no pairs.
    """
    active = [name for name, weight in weights.items() if weight > 0 and PAIRS_PREFIX + name in rows.column_names]
    counts = {name: sum(map(len, rows[PAIRS_PREFIX + name])) for name in active}
    if lacking := [name for name, weight in weights.items() if weight > 0 and not counts.get(name)]:
        fix = "give it pairs, or the weight 0"
        raise InputError(Problem("train_dataset", PAIRS_PREFIX + lacking[0], "there is no pair to train on", fix))
    total = sum(counts.values())
    return [weight * total / counts[name] if weight > 0 else 0.0 for name, weight in weights.items()]
