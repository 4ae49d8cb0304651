"""The preference vectors of a sweep, from what an experiment file says: `weights`, `grid` or `lattice`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from modpo.base import simplex
from modpo.base.errors import InputError, Problem
from modpo.base.simplex import Weights
from modpo.experiment.method_rules import method_problems, method_vectors
from modpo.experiment.methods import CONTINUOUS, METHODS
from modpo.experiment.rules import trainable_problem
from modpo.experiment.sections import Experiment, Objective
from modpo.experiment.yaml_nodes import place
from modpo.experiment.yaml_reader import BROKEN, SectionReader

MOST_POINTS = 1000
MOST_STEPS = 100_000


@dataclass(frozen=True)
class SweepChoice:
    """`sweep:` as it is written: exactly one of `weights`, `grid` and `lattice`."""

    weights: list[Any] | None = None  # [{helpful: 0.7, concise: 0.3}, ...]
    normalize: bool = False  # divide each vector of `weights` by its sum
    grid: int | None = None  # so many evenly spaced vectors between two objectives, without the ends
    method: str = "modpo"
    mode: str = "separate"
    concentration: float = 1.0
    spread: float = 2.0
    prompts_per_draw: int | None = None
    lattice: int | None = None  # all vectors of multiples of 1/lattice, for any number of objectives


def check_trainable(
    weights: Weights,
    objectives: dict[str, Objective],
    named: str | None,
    *,
    where: str,
    field: str,
    method: str = "modpo",
) -> None:
    """Of the objectives with a weight, all but one need a reward where it enters as a margin.

    Raises:
        InputError: two of them have pairs alone; several have a weight, and the method has policies of one.
    """
    if METHODS[method].one_objective and sum(weight > 0 for weight in weights.values()) > 1:
        fix = "give one objective all the weight"
        raise InputError(Problem(where, field, f"lies between objectives, and `method: {method}` takes one", fix))
    problem = trainable_problem(weights, objectives, named) if METHODS[method].margins else None
    if problem:
        fix = "give all but one of them a reward, for instance `reward: {train: implicit}`, or the weight 0"
        raise InputError(Problem(where, field, problem, fix))


def as_continuous(experiment: Experiment) -> Experiment:
    """The experiment with `sweep.mode: continuous`, checked as if the file had said so.

    Raises:
        InputError: another method than MODPO, one objective, no plain adapters, nothing to train on.
    """
    names, method = list(experiment.objectives), experiment.sweep.method
    problems = list(method_problems(CONTINUOUS, experiment.objectives, experiment.lora))
    if method != "modpo":
        problems.append(("sweep.method", f"is {method}, and a continuous policy is MODPO's", "use `method: modpo`"))
    if len(names) == 1:
        problems.append(("objectives", "has one, and a continuous policy is of several", "give `weights` instead"))
    if problems:
        raise InputError([Problem(experiment.where(field), field, said, fix) for field, said, fix in problems])
    where, named = experiment.where("objectives"), experiment.training.objective
    check_trainable(simplex.middle(names), experiment.objectives, named, where=where, field="objectives")
    return dataclasses.replace(experiment, sweep=dataclasses.replace(experiment.sweep, mode=CONTINUOUS))


def expand_sweep(choice: Any, objectives: Any, named: str | None, reader: SectionReader) -> list[Weights]:
    """The vectors to train, each once; no `sweep:` gives none. Problems are noted in the reader.

    Args:
        named: objective k, where the experiment names it.
    """
    if choice is None or choice is BROKEN or reader.is_broken("sweep") or reader.is_broken("objectives"):
        return []
    given = [name for name in ("weights", "grid", "lattice") if getattr(choice, name) is not None]
    one_objective = choice.method in METHODS and METHODS[choice.method].one_objective
    if not given and one_objective:
        return method_vectors(choice.method, [], list(objectives))
    if len(given) != 1:
        problem = f"{' and '.join(given)} exclude each other" if given else "says nothing"
        reader.report("sweep", problem, "give exactly one of `weights`, `grid` and `lattice`")
        return []
    names, path = list(objectives), f"sweep.{given[0]}"
    if choice.weights is not None:
        vectors = _from_weights(choice, names, reader)
    else:
        made = _from_grid if choice.grid is not None else _from_lattice
        vectors = [(path, vector) for vector in made(getattr(choice, given[0]), names, reader)]
    if one_objective:
        return method_vectors(choice.method, [], names)
    try:
        for path, weights in vectors:
            where = place(reader.source, reader.lines, path)
            check_trainable(weights, objectives, named, where=where, field=path, method=choice.method)
    except InputError as error:  # the first will do: the others have the same reason
        reader.problems += error.problems
        return []
    return simplex.unique([weights for _, weights in vectors])


def _from_weights(choice: SweepChoice, names: list[str], reader: SectionReader) -> list[tuple[str, Weights]]:
    """Each vector with its place."""
    vectors = []
    if not choice.weights:
        reader.report("sweep.weights", "is empty", "give at least one vector, or leave `sweep` out")
    for i, given in enumerate(choice.weights or []):
        path = f"sweep.weights[{i}]"
        where = place(reader.source, reader.lines, path)
        try:
            weights = simplex.read_weights(given, names, where=where, field=path, normalize=choice.normalize)
            vectors.append((path, weights))
        except InputError as error:  # a vector may stand on several lines: name the weight's own
            reader.problems += [
                dataclasses.replace(p, where=place(reader.source, reader.lines, p.field)) for p in error.problems
            ]
    return vectors


def _from_grid(points: int, names: list[str], reader: SectionReader) -> list[Weights]:
    if len(names) != 2:
        fix = f"use `lattice` or `weights` for {len(names)} objectives"
        reader.report("sweep.grid", "lies between exactly two objectives", fix)
    elif not 1 <= points <= MOST_POINTS:
        reader.report("sweep.grid", f"is {points}", f"give a number of points from 1 to {MOST_POINTS}")
    else:
        return simplex.interior_grid(names, points)
    return []


def _from_lattice(steps: int, names: list[str], reader: SectionReader) -> list[Weights]:
    if not 1 <= steps <= MOST_STEPS:
        reader.report("sweep.lattice", f"is {steps}", f"give a number of steps of at least 1 and at most {MOST_STEPS}")
    elif (points := math.comb(steps + len(names) - 1, len(names) - 1)) > MOST_POINTS:
        reader.report("sweep.lattice", f"makes {points} vectors, more than {MOST_POINTS}", "take fewer steps")
    else:
        return simplex.lattice(names, steps)
    return []
