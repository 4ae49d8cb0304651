"""The preference vectors of a sweep, from what an experiment file says: `weights`, `grid` or `lattice`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from modpo.base import simplex
from modpo.base.errors import InputError, Problem
from modpo.base.simplex import Weights
from modpo.experiment.method_rules import method_problems
from modpo.experiment.methods import CONTINUOUS, METHODS
from modpo.experiment.objectives import Objective
from modpo.experiment.primary import is_trainable
from modpo.experiment.sections import Experiment
from modpo.experiment.sweep_sections import MOST_POINTS, SweepChoice
from modpo.experiment.yaml_nodes import place
from modpo.experiment.yaml_reader import SectionReader


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
    with_pairs = {name for name, objective in objectives.items() if objective.pairs}
    with_reward = {name for name, objective in objectives.items() if objective.reward}
    if not METHODS[method].margins or is_trainable(weights, with_pairs, with_reward, named):
        return
    unscored = [name for name, weight in weights.items() if weight > 0 and name not in with_reward]
    others = f" beside {named}, which `training.objective` names" if named in weights and len(unscored) == 1 else ""
    verb = "have" if len(unscored) > 1 else "has"
    problem = f"{' and '.join(unscored)} {verb} pairs but no reward{others}, and only one objective enters by its pairs"
    fix = "give all but one of them a reward, for instance `reward: {train: implicit}`, or the weight 0"
    raise InputError(Problem(where, field, problem, fix))


def as_continuous(experiment: Experiment) -> Experiment:
    """The experiment with `sweep.mode: continuous`, checked as if it stood in the file.

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
    if choice is None or reader.is_broken("sweep") or reader.is_broken("objectives"):
        return []
    names = list(objectives)
    given = [name for name in ("weights", "grid", "lattice") if getattr(choice, name) is not None]
    one_objective = METHODS[choice.method].one_objective  # of such a method it may say nothing
    if len(given) > 1 or not (given or one_objective):
        problem = f"{' and '.join(given)} exclude each other" if given else "says nothing"
        reader.report("sweep", problem, "give exactly one of `weights`, `grid` and `lattice`")
        return []
    vectors = _given_vectors(choice, names, reader)
    if one_objective:
        return simplex.lattice(names, 1)
    try:
        for path, weights in vectors:
            where = place(reader.source, reader.lines, path)
            check_trainable(weights, objectives, named, where=where, field=path, method=choice.method)
    except InputError as error:  # the first will do: the others have the same reason
        reader.problems += error.problems
        return []
    return simplex.unique([weights for _, weights in vectors])


def _given_vectors(choice: SweepChoice, names: list[str], reader: SectionReader) -> list[tuple[str, Weights]]:
    """Each vector with its dotted path."""
    if choice.grid is not None:
        if len(names) == 2:
            return [("sweep.grid", vector) for vector in simplex.interior_grid(names, choice.grid)]
        fix = f"use `lattice` or `weights` for {len(names)} objectives"
        reader.report("sweep.grid", "lies between exactly two objectives", fix)
    if choice.lattice is not None:
        points = math.comb(choice.lattice + len(names) - 1, len(names) - 1)
        if points <= MOST_POINTS:
            return [("sweep.lattice", vector) for vector in simplex.lattice(names, choice.lattice)]
        reader.report("sweep.lattice", f"makes {points} vectors, more than {MOST_POINTS}", "take fewer steps")
    vectors = []
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
