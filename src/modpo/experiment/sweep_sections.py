"""The sections of an experiment file that say what is swept: preference vectors and methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from modpo.base.simplex import Weights
from modpo.experiment.keys import LARGEST_SEED, SEED, Rule, above, at_least, between, not_empty, one_of
from modpo.experiment.methods import METHODS, MODES

MOST_POINTS = 1000
MOST_STEPS = 100_000

AT_LEAST_ONE = not_empty("name at least one, each once")
EACH_ONCE = Rule(lambda values: len(values) == len(set(values)), AT_LEAST_ONE.fix, "has one twice")
SOME_METHODS = Rule(lambda names: set(names) <= set(METHODS), f"use some of: {', '.join(METHODS)}", "is {}")
SEEDS = Rule(lambda seeds: all(map(SEED.accepts, seeds)), f"give numbers from 0 to {LARGEST_SEED}", "is {}")


@dataclass(frozen=True)
class VectorChoice:
    """The preference vectors as they are written: exactly one of `weights`, `grid` and `lattice`."""

    weights: Annotated[list[Any] | None, not_empty("give at least one vector, or leave `sweep` out")] = None
    """a list of vectors, by name, each of sum 1: `[{helpful: 0.7, concise: 0.3}]`. An objective left out has weight
    0"""
    normalize: bool = False
    """divide each vector of `weights` by its sum"""
    grid: Annotated[int | None, between(1, MOST_POINTS)] = None
    """so many evenly spaced vectors between two objectives, without the ends: 5 gives 0.9, 0.7, 0.5, 0.3, 0.1"""
    lattice: Annotated[int | None, between(1, MOST_STEPS)] = None
    """all vectors whose weights are multiples of one over this number, for any number of objectives"""


@dataclass(frozen=True)
class Vectors:
    """The preference vectors to train, expanded from a `VectorChoice`."""

    weights: list[Weights] = field(default_factory=list)


@dataclass(frozen=True)
class SweepMethod:
    """How the policies of a sweep come about."""

    method: Annotated[str, one_of([name for name, method in METHODS.items() if method.mode == "separate"])] = "modpo"
    """how the policy of a vector comes about; see [method](#method)"""
    mode: Annotated[str, one_of(MODES)] = "separate"
    """`separate`: a training for each vector. `continuous`: one training for all, an adapter per objective that are
    active together, steered by their scales; the vectors are baked from it as plain adapters. It wants about 1.6 times
    the steps of a single training, and vectors drawn from the middle, `concentration: 1.7` ([decision
    5](decisions/0005-training-of-the-quickstart.md))"""
    concentration: Annotated[float, above(0)] = 1.0
    """continuous: of the Dirichlet distribution from which training draws vectors; 1 is uniform, above it the middle is
    drawn more often, below it the corners"""
    spread: Annotated[float, above(0)] = 2.0
    """continuous: the adapters' scales are 1/K + spread (w - 1/K), for K objectives: the same family, in which what
    differs between vectors is learned faster. With K = 2 and spread 2 the scales run from -0.5 to 1.5; spread 1 makes
    them the weights themselves"""
    prompts_per_draw: Annotated[int | None, at_least(1)] = None
    """continuous: prompts that share a drawn vector; if not set, a batch"""


# of two bases, the fields of the second come first
@dataclass(frozen=True)
class SweepChoice(SweepMethod, VectorChoice):
    """`sweep:` as it is written."""


@dataclass(frozen=True)
class SweepSection(SweepMethod, Vectors):
    """`sweep:` with its vectors; without any, the file has no sweep."""


@dataclass(frozen=True)
class MorlhfSection:
    """`sweep.method: morlhf`: reinforcement learning on the weighted sum of the rewards, by one of TRL's trainers."""

    algorithm: Annotated[str, one_of(("rloo", "grpo"))] = "rloo"
    """`rloo`: `trl.RLOOTrainer`, with KL in the reward; `grpo`: `trl.GRPOTrainer`, whose penalty is another estimate of
    KL, in the loss, with another gradient"""
    learning_rate: Annotated[float, above(0)] = 1e-4
    """of the adapter"""
    max_steps: Annotated[int, at_least(1)] = 100
    """optimizer steps"""
    num_generations: Annotated[int, at_least(2)] = 4
    """answers to a prompt, which are each other's baseline"""
    per_device_train_batch_size: Annotated[int, at_least(2)] = 16
    """answers in a step: a multiple of `num_generations`"""
    max_completion_length: Annotated[int | None, at_least(1)] = None
    """tokens of an answer; if not set, `evaluation.max_new_tokens`"""
    arguments: dict[str, Any] = field(default_factory=dict)
    """fields of `trl.RLOOConfig` or `trl.GRPOConfig`; refused are those that would make it maximise something else,
    such as `normalize_advantages`, `reward_clip_range`, `scale_rewards` and `temperature`"""


@dataclass(frozen=True)
class BestOfNSection:
    """`sweep.method: best_of_n`: of n answers of the reference, the one with the best weighted reward."""

    n: Annotated[int, at_least(1)] = 4
    """answers to choose from"""


@dataclass(frozen=True)
class ComparisonSection:
    """Several methods on the same data, rewards and held-out prompts: `modpo sweep` runs them all."""

    methods: Annotated[list[str], AT_LEAST_ONE, EACH_ONCE, SOME_METHODS]
    """a list of names of `sweep.method`, and `continuous`, which is `modpo` with `mode: continuous`. Both take learning
    rate and epochs from this file, although they want others (see [sweep](#sweep))"""
    seeds: Annotated[list[int], AT_LEAST_ONE, EACH_ONCE, SEEDS] = field(default_factory=lambda: [0, 1, 2])
    """each method runs once with each"""
