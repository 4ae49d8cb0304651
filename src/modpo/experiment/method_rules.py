"""What each method of a sweep asks of the objectives, found before anything is loaded."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from modpo.base import simplex
from modpo.base.simplex import Weights
from modpo.experiment.methods import CONTINUOUS, METHODS
from modpo.experiment.sections import LoraSection, Objective
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
    measured = getattr(shape.evaluation, "rewards", ())
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
    needs = METHODS[method]
    for name, objective in objectives.items():
        if needs.own_pairs and objective.pairs is None:
            fix = "name a label set in `pairs`, or draw them from its reward: `pairs: bradley_terry`"
            yield f"objectives.{name}", f"has no pairs, which `method: {method}` trains on", fix
        scorer = objective.proxy or objective.reward
        if needs.new_answers and not (scorer and scorer.scores_new_text):
            fix = "give it a reward function, a reward model, `reward: {train: reward_model}`, or such a `proxy`"
            yield f"objectives.{name}", f"cannot score new answers, as `method: {method}` needs", fix
        if needs.new_answers and objective.proxy and name not in measured and not _measures(objective):
            fix = f"name a scorer in `evaluation.rewards.{name}`"
            yield f"objectives.{name}.proxy", f"would measure what `method: {method}` trains by it", fix
    if needs.mode == CONTINUOUS and lora is None:
        yield "lora", "is null", "a continuous policy is one adapter per objective: give its fields"
    if needs.adds_adapters and lora is not None and lora.modules_to_save:
        fix = "leave it out: only low-rank updates are added up"
        yield "lora.modules_to_save", f"does not go with `{method}`", fix


def _measures(objective: Objective) -> bool:
    """Whether an objective's own reward can measure policies."""
    return objective.reward is not None and objective.reward.scores_new_text
