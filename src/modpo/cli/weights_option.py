"""Weights as they are typed: `positive=0.7,concise=0.3`, behind `--weights` or in a chat."""

from __future__ import annotations

import re
from collections.abc import Sequence

from modpo.base import simplex
from modpo.base.errors import InputError, Problem
from modpo.base.simplex import Weights

OPTION = "--weights"


def read_weights_option(text: str, objectives: Sequence[str]) -> Weights:
    """The vector that the option says, over the objectives.

    Raises:
        InputError: not of that form, or no such vector.
    """
    return simplex.read_weights(read_settings(text, objectives, OPTION), objectives, where=OPTION)


def read_settings(text: str, objectives: Sequence[str], where: str) -> dict[str, float | str]:
    """`positive=0.8 concise=0.1`, or with commas, by name; what is no number stays text, for `read_weights` to refuse.

    Args:
        objectives: what may be named, for an error to give an example.
        where: what an error names.

    Raises:
        InputError: not of that form.
    """
    example = "write " + ",".join(f"{name}={1 / len(objectives):.3g}" for name in objectives)
    given: dict[str, float | str] = {}
    name = ""
    for piece in re.split(r"[,\s]+", re.sub(r"\s*=\s*", "=", text.strip())):
        before, equals, number = piece.partition("=")
        if not equals and name and before.isdigit():  # positive=0,7 was split at its decimal comma
            given[name] = f"{given[name]},{before}"
            continue
        name = before
        if not equals or not name:
            raise InputError(Problem(where, "weights", f"{piece!r} is not NAME=WEIGHT", example))
        if name in given:
            raise InputError(Problem(where, f"weights.{name}", "is given twice", "give it once"))
        given[name] = number
    return {name: _number(value) for name, value in given.items()}


def _number(value: float | str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
