"""Answers of the reference policy to a few prompts of the data, for what is fitted on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modpo.data.groups import PromptGroups
from modpo.rewards.batch import RewardBatch, answer_batch
from modpo.scored.answers import SampleSettings, sample_column
from modpo.scored.columns import Column

if TYPE_CHECKING:
    from modpo.models.reference import Reference


@dataclass(frozen=True)
class AnswerSettings:
    """How many, and how long: the same for every experiment, for what is fitted on them decides what is trained."""

    prompts: int = 64
    max_new_tokens: int = 128
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class ReferenceAnswers:
    """One answer to each of some prompts; an empty one is none."""

    prompts: PromptGroups
    samples: Column

    @property
    def key(self) -> str:
        """What they are, for a cache key."""
        return self.samples.key

    def batch(self) -> RewardBatch:
        """The answers, as a scorer sees them."""
        rows = zip(self.prompts, self.samples.open()["responses"], strict=True)
        answered = [(group, text) for group, texts in rows for text in texts]
        return answer_batch([group for group, _ in answered], [text for _, text in answered])


def reference_answers(
    reference: Reference, groups: PromptGroups, settings: AnswerSettings, cache_dir: Path
) -> ReferenceAnswers:
    """Answers to the first prompts of `groups`, from the cache or sampled into it."""
    prompts = groups.select(range(min(settings.prompts, len(groups))))
    one = SampleSettings(1, settings.max_new_tokens, settings.temperature, settings.seed)
    samples = sample_column(reference, prompts, one, cache_dir=cache_dir)
    return ReferenceAnswers(prompts, samples)
