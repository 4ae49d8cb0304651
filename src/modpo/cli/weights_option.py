"""`--weights positive=0.7,concise=0.3`: a preference vector on the command line."""

from __future__ import annotations

from modpo.base import simplex
from modpo.base.errors import InputError, Problem
from modpo.base.simplex import Weights

OPTION = "--weights"


def read_weights_option(text: str, objectives: list[str]) -> Weights:
    """The vector that the option says, over the objectives.

    Raises:
        InputError: not of that form, or no such vector.
    """
    return simplex.read_weights(_pieces(text, objectives), objectives, where=OPTION)


def _pieces(text: str, names: list[str]) -> dict[str, float | str]:
    """The names and numbers; what is no number stays text, for `read_weights` to name."""
    example = "write " + ",".join(f"{name}={1 / len(names):.3g}" for name in names)
    given: dict[str, float | str] = {}
    name = ""
    for piece in text.split(","):
        before, equals, number = (part.strip() for part in piece.partition("="))
        if not equals and name and before.isdigit():  # positive=0,7 was split at its decimal comma
            given[name] = f"{given[name]},{before}"
            continue
        name = before
        if not equals or not name:
            raise InputError(Problem(OPTION, "weights", f"{piece!r} is not NAME=WEIGHT", example))
        if name in given:
            raise InputError(Problem(OPTION, f"weights.{name}", "is given twice", "give it once"))
        given[name] = number
    return {name: _number(value) for name, value in given.items()}


def _number(value: float | str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
