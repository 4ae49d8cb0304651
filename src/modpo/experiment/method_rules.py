"""What each method of a sweep asks of the objectives, found before anything is loaded."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from modpo.base import simplex
from modpo.base.simplex import Weights
from modpo.experiment.methods import CONTINUOUS, METHODS, Method
from modpo.experiment.objectives import Objective
from modpo.experiment.sections import LoraSection
from modpo.experiment.yaml_reader import BROKEN, SectionReader

PROBLEM = tuple[str, str, str]  # field, what is wrong with it, what to do


def method_vectors(method: str, vectors: list[Weights], objectives: list[str]) -> list[Weights]:
    """The vectors of a sweep by that method: the unit vectors where a policy is of one objective."""
    return simplex.lattice(objectives, 1) if METHODS[method].one_objective else vectors


def check_methods(shape: Any, reader: SectionReader) -> None:
    """Note in the reader where the file's method, or one of those that it compares, cannot work with its objectives."""
    if not isinstance(shape.objectives, dict) or shape.lora is BROKEN:
        return
    known = {n: o for n, o in shape.objectives.items() if o is not BROKEN and not reader.is_broken(f"objectives.{n}")}
    rewards = getattr(shape.evaluation, "rewards", None)
    measured = rewards if isinstance(rewards, dict) else ()
    for method in filter(METHODS.__contains__, _methods(shape)):
        for problem in method_problems(method, known, shape.lora, measured):
            reader.report(*problem)


def _methods(shape: Any) -> list[str]:
    compared = getattr(shape.comparison, "methods", None)
    if compared is not None:
        return [] if compared is BROKEN else list(compared)
    continuous = getattr(shape.sweep, "mode", None) == CONTINUOUS
    method = CONTINUOUS if continuous else getattr(shape.sweep, "method", None)
    return [] if method is None else [method]


def method_problems(
    method: str, objectives: Mapping[str, Objective], lora: LoraSection | None, measured: Container[str] = ()
) -> Iterator[PROBLEM]:
    """Why a method cannot work with the objectives and adapters of an experiment.

    Args:
        measured: the objectives that `evaluation.rewards` names.
    """
    for name, objective in objectives.items():
        yield from _objective_problems(METHODS[method], objective, measured=name in measured or objective.measures)
    if METHODS[method].mode == CONTINUOUS and lora is None:
        yield "lora", "is null", "a continuous policy is one adapter per objective: give its fields"
    if METHODS[method].adds_adapters and lora is not None and lora.modules_to_save:
        fix = "leave it out: only low-rank updates are added up"
        yield "lora.modules_to_save", f"does not go with `{method}`", fix


def _objective_problems(method: Method, objective: Objective, *, measured: bool) -> Iterator[PROBLEM]:
    """`measured`: something beside its proxy measures it."""
    path = f"objectives.{objective.name}"
    if method.own_pairs and objective.pairs is None:
        fix = "name a label set in `pairs`, or draw them from its reward: `pairs: bradley_terry`"
        yield path, f"has no pairs, which `method: {method.name}` trains on", fix
    scorer = objective.proxy or objective.reward
    if method.new_answers and not (scorer and scorer.scores_new_text):
        fix = "give it a reward function, a reward model, `reward: {train: reward_model}`, or such a `proxy`"
        yield path, f"cannot score new answers, as `method: {method.name}` needs", fix
    if method.new_answers and objective.proxy and not measured:
        fix = f"name a scorer in `evaluation.rewards.{objective.name}`"
        yield f"{path}.proxy", f"would measure what `method: {method.name}` trains by it", fix
