"""What rewards made of language models depend on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modpo.experiment.sections import Experiment, ModelSection


@dataclass(frozen=True)
class RewardContext:
    """What an experiment says that rewards made of language models depend on."""

    model: ModelSection  # the reference policy
    cache_dir: Path
    max_length: int
    max_prompt_length: int | None = None
    packing: bool = True
    beta: float = 0.1

    @classmethod
    def of(cls, experiment: Experiment) -> RewardContext:
        """The context of an experiment."""
        data, training = experiment.data, experiment.training
        return cls(
            experiment.model,
            experiment.cache_dir,
            data.max_length,
            data.max_prompt_length,
            training.packing,
            training.beta,
        )
