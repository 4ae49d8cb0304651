"""How much the quickstart does, and how long that takes at a machine's rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from modpo.pipeline.stages import EVALUATE, REPORT, SWEEP
from modpo.scored.answers import SAMPLE

PROMPT_TOKENS = 42  # of the prompts that ship with modpo, on average
RESPONSES, SAMPLES = 4, 2  # answers to a prompt that is trained on, and to a held-out one, as in experiment.yaml
# Seconds that hardly depend on a machine's rates: what is read, written, checked and drawn.
SWEEP_SECONDS, POINT_SECONDS, POLICY_SECONDS, REPORT_SECONDS = 20.0, 2.0, 5.0, 10.0


@dataclass(frozen=True)
class Rates:
    """Tokens a second of this machine."""

    sampling: float  # made
    reading: float  # read for their log-probs
    training: float  # read, and gone back through


@dataclass(frozen=True)
class Size:
    """How much the quickstart does."""

    train_prompts: int
    held_out_prompts: int
    vectors: int
    max_new_tokens: int = 48
    separate: bool = False  # a training for each vector

    @property
    def epochs(self) -> float:
        """Passes over the training data, as in experiment.yaml."""
        return 1.0 if self.separate else 1.6

    def seconds(self, rates: Rates) -> dict[str, float]:
        """What each stage is expected to take."""
        trained = self.train_prompts * (PROMPT_TOKENS + RESPONSES * self.max_new_tokens)
        sampled = self.held_out_prompts * SAMPLES * self.max_new_tokens
        read = self.held_out_prompts * PROMPT_TOKENS + sampled
        trainings = self.epochs * (self.vectors if self.separate else 1)
        new = self.train_prompts * RESPONSES * self.max_new_tokens
        sample = new / rates.sampling + self.train_prompts * PROMPT_TOKENS / rates.reading
        sweep = trained / rates.reading + trainings * trained / rates.training
        answers = sampled / rates.sampling + self.held_out_prompts * PROMPT_TOKENS / rates.reading
        # A policy's answers are read by the reference, and those of the reference by the policy: see its audit.
        evaluate = (self.vectors + 1) * (answers + POLICY_SECONDS) + self.vectors * 2 * read / rates.reading
        return {
            SAMPLE: sample,
            SWEEP: sweep + SWEEP_SECONDS + self.vectors * POINT_SECONDS,
            EVALUATE: evaluate,
            REPORT: REPORT_SECONDS,
        }

    def __str__(self) -> str:
        return (
            f"{self.train_prompts} prompts to train on, {self.held_out_prompts} to measure on, "
            f"{self.vectors} preference vectors"
        )


FULL = Size(train_prompts=128, held_out_prompts=112, vectors=9)
# Where time does not suffice. First vectors go: those that stay are measured as well as before. Then prompts to train
# on, then prompts to measure on, whose number the width of the intervals hangs on.
SMALLER = (
    Size(train_prompts=128, held_out_prompts=112, vectors=5),
    Size(train_prompts=96, held_out_prompts=112, vectors=5),
    Size(train_prompts=96, held_out_prompts=96, vectors=3),
    Size(train_prompts=64, held_out_prompts=96, vectors=3),
    Size(train_prompts=64, held_out_prompts=64, vectors=3),
    Size(train_prompts=48, held_out_prompts=64, vectors=3),
)
FAST = Size(train_prompts=32, held_out_prompts=48, vectors=3, max_new_tokens=40)
SEPARATE = (
    replace(FULL, vectors=5, separate=True),
    replace(FULL, vectors=3, separate=True),
    Size(train_prompts=64, held_out_prompts=96, vectors=3, separate=True),
    Size(train_prompts=48, held_out_prompts=64, vectors=2, separate=True),
)
SEPARATE_FAST = replace(FAST, vectors=2, separate=True)


def sizes(*, separate: bool) -> Sequence[Size]:
    """From the full size down to the smallest."""
    return (*SEPARATE, SEPARATE_FAST) if separate else (FULL, *SMALLER, FAST)


def largest_within(seconds: float, rates: Rates, choices: Sequence[Size]) -> Size:
    """The first of the sizes that is expected to take so long at most; the last where none is."""
    return next((size for size in choices if sum(size.seconds(rates).values()) <= seconds), choices[-1])
