"""An answer that a policy gave, and what decides it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

RULES = 2  # counts up when the same settings give other answers


@dataclass(frozen=True)
class SampledAnswer:
    """An answer of a policy."""

    ids: list[int]  # with the token that ends it, unless it was cut off
    logp: float | None = None  # log pi(answer | prompt) at temperature 1, nats; None: to be read


@dataclass(frozen=True)
class SamplingSettings:
    """What decides answers besides policy and prompts.

    Attributes:
        ends: tokens that end an answer, see `modpo.data.chat_template.stop_ids`.
        seed, first_prompt: answer j to prompt i has random numbers of its own, those of (seed, first_prompt + i, j).
    """

    ends: Collection[int]
    max_new_tokens: int
    answers_per_prompt: int = 1
    temperature: float = 1.0
    seed: int = 0
    first_prompt: int = 0


def logps_of(answers: Sequence[Sequence[SampledAnswer]]) -> list[float] | None:
    """log pi of all answers to some prompts, one flat list; None where it was not taken as they were made."""
    found = [answer.logp for group in answers for answer in group if answer.logp is not None]
    return found if len(found) == sum(map(len, answers)) else None
