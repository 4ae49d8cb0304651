"""DPO with weighted losses: a training for each preference vector, on the pairs of all objectives at once."""

from __future__ import annotations

from functools import partial

from modpo.methods.modpo import train
from modpo.methods.run import Maker, Run


def maker(run: Run) -> Maker:
    """Nothing is shared but the scores."""
    from modpo.training.loss_weighting import LossWeightingTrainer

    return partial(train, run, kind=LossWeightingTrainer)
