"""Preference vectors: the one place where weights are read, checked, enumerated and named.

A preference vector w holds one weight per objective, by name: w_i >= 0 and sum_i w_i = 1.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from modpo.base.errors import InputError, Problem

Weights = dict[str, float]

SUM_TOLERANCE = 1e-6
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def read_weights(
    given: Any, objectives: Sequence[str], *, where: str, field: str = "weights", normalize: bool | None = None
) -> Weights:
    """Check one preference vector and return it in the objectives' order.

    Args:
        given: mapping from objective name to weight; an objective left out has weight 0.
        objectives: the names that may occur.
        where, field: what an error names.
        normalize: divide by the sum instead of refusing a sum other than 1. None: who gives it has no such choice.

    Raises:
        InputError: not a mapping, an unknown name, a weight that is no finite number >= 0, a sum other than 1.
    """
    if not isinstance(given, Mapping):
        raise InputError(
            Problem(where, field, f"expected a mapping of objective to weight, got {given!r}", _example(objectives))
        )
    problems = [
        Problem(where, f"{field}.{name}", "unknown objective", f"use one of: {', '.join(objectives)}")
        for name in given
        if name not in objectives
    ]
    problems += [
        Problem(where, f"{field}.{name}", *trouble)
        for name, value in given.items()
        if name in objectives and (trouble := _weight_trouble(value))
    ]
    if problems:
        raise InputError(problems)
    weights = {name: float(given.get(name, 0.0)) for name in objectives}
    largest = max(weights.values())
    if largest == 0:
        raise InputError(Problem(where, field, "all weights are 0", _example(objectives)))
    shares = {name: value / largest for name, value in weights.items()}  # whose sum cannot overflow
    if normalize:
        total = math.fsum(shares.values())
        return {name: share / total for name, share in shares.items()}
    total = largest * math.fsum(shares.values())
    if abs(total - 1) > SUM_TOLERANCE:
        fix = "make them sum to 1" + ("" if normalize is None else ", or set `normalize: true`")
        raise InputError(Problem(where, field, f"weights sum to {total:g}, not 1", fix))
    return weights


def _weight_trouble(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and "," in value:
        return f"{value!r} has a decimal comma", f"write {value.replace(',', '.')}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{value!r} is not a number", "give a number between 0 and 1"
    if isinstance(value, int) and abs(value) > 1e300:  # no float holds it, and hardly a line
        return "is too large a number", "give a number between 0 and 1"
    if not math.isfinite(value):
        return f"{value!r} is not finite", "give a number between 0 and 1"
    if value < 0:
        return f"{value:g} is negative", "weights are at least 0; to turn an objective round, set its `maximize`"
    return None


def _example(objectives: Sequence[str]) -> str:
    return "write for instance {" + ", ".join(f"{name}: {1 / len(objectives):.3g}" for name in objectives) + "}"


def middle(objectives: Sequence[str]) -> Weights:
    """The vector at which all objectives weigh alike."""
    return {name: 1 / len(objectives) for name in objectives}


def lattice(objectives: Sequence[str], steps: int) -> list[Weights]:
    """All vectors whose weights are multiples of 1/steps (simplex lattice design), the first objective falling.

    With two objectives and steps=4: (1, 0), (.75, .25), (.5, .5), (.25, .75), (0, 1).
    There are C(steps + K - 1, K - 1) of them.
    """
    # Stars and bars: where K-1 bars stand among steps + K-1 places says how many steps each objective gets.
    places = steps + len(objectives) - 1
    vectors = []
    for bars in itertools.combinations(range(places), len(objectives) - 1):
        edges = [-1, *bars, places]
        counts = [after - before - 1 for before, after in itertools.pairwise(edges)]
        vectors.append({name: n / steps for name, n in zip(objectives, counts, strict=True)})
    return vectors[::-1]


def interior_grid(objectives: Sequence[str], points: int) -> list[Weights]:
    """`points` evenly spaced vectors strictly inside the segment between two objectives.

    points=5 gives the first weight .9, .7, .5, .3, .1: every w_k > 0, so that the preference loss is defined.
    """
    first, second = objectives
    return [
        {first: round(1 - (2 * i + 1) / (2 * points), 10), second: round((2 * i + 1) / (2 * points), 10)}
        for i in range(points)
    ]


def unique(vectors: Sequence[Weights]) -> list[Weights]:
    """The vectors without repetitions, in order: the same vector twice is trained once."""
    seen: dict[tuple[tuple[str, float], ...], Weights] = {}
    for vector in vectors:
        seen.setdefault(tuple((name, round(value, 9)) for name, value in sorted(vector.items())), vector)
    return list(seen.values())


def name(weights: Weights) -> str:
    """A folder name for a vector, matching `NAME` whatever the objectives are called: `positive0.7-concise0.3`."""
    text = "-".join(f"{objective}{value:.6g}" for objective, value in weights.items())
    if NAME.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', text)[:55]}-{digest}"


def spread_out(weights: Weights, spread: float) -> Weights:
    """The scales of a continuous policy's adapters at a vector: 1/K + spread (w - 1/K); they sum to 1 as w does."""
    middle = 1 / len(weights)
    return {name: middle + spread * (weight - middle) for name, weight in weights.items()}


def label(weights: Weights) -> str:
    """A vector as a person reads it: `positive 0.7, concise 0.3`."""
    return ", ".join(f"{objective} {value:.3g}" for objective, value in weights.items())
