"""DPO with weighted losses: a training for each preference vector, on the pairs of all objectives at once."""

from __future__ import annotations

from functools import partial

from modpo.methods import Maker, Run
from modpo.methods.modpo import train


def maker(run: Run) -> Maker:
    """Nothing is shared but the scores."""
    from modpo.loss_weighting import LossWeightingTrainer

    return partial(train, run, kind=LossWeightingTrainer)
