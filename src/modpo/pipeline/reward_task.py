"""What one trained reward is to learn, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modpo.data.groups import PromptGroups
from modpo.experiment.objectives import RewardSection, RewardTraining
from modpo.experiment.sections import Experiment
from modpo.rewards.accuracy import reward_folder


@dataclass(frozen=True)
class RewardTask:
    """What one reward is to learn, and where it goes."""

    experiment: Experiment
    name: str  # the objective
    role: str  # REWARD | PROXY
    section: RewardSection
    training: RewardTraining  # of the section
    label_set: str
    learned: PromptGroups  # each with pairs of the label set
    held_out: PromptGroups

    @property
    def folder(self) -> Path:
        """Where the result lies."""
        return reward_folder(self.experiment, self.name)

    @property
    def work(self) -> Path:
        """Where the trainer may write meanwhile."""
        return self.folder.with_name(f".work-{self.name}")

    @property
    def label(self) -> str:
        """What the console calls it."""
        return f"{self.role} {self.name}"

    @property
    def field(self) -> str:
        """Its place in the experiment."""
        return f"objectives.{self.name}.{self.role}.train"
