"""Parsed JSON into dataclasses; what does not fit is named by its path."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

_EXPECTED = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number"}


class WrongFieldError(ValueError):
    """A value that does not fit its field."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field  # "points.2.scores.concise.mean"
        self.problem = problem


def decode(kind: Any, given: Any, at: str = "") -> Any:
    """`given` as `kind`: a dataclass, dict[str, kind], list[kind], kind | None, or a plain type.

    Keys that a dataclass does not know are left out, so that a schema can gain fields.

    Raises:
        WrongFieldError: a value of another type, a number that is not finite, a field that is missing.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if given is None and NoneType in arguments else decode(arguments[0], given, at)
    if origin is list and isinstance(given, list):
        return [decode(arguments[0], item, f"{at}.{i}") for i, item in enumerate(given)]
    if origin is dict and isinstance(given, dict):
        return {key: decode(arguments[1], item, f"{at}.{key}") for key, item in given.items()}
    if is_dataclass(kind) and isinstance(given, Mapping):
        return _decode_dataclass(kind, given, at)
    if _fits(kind, given):
        return kind(given) if kind in (int, float) else given
    expected = _EXPECTED.get(kind) or ("a list" if origin is list else "an object")
    raise WrongFieldError(at, f"expected {expected}, got {given!r:.60}")


def _fits(kind: Any, given: Any) -> bool:
    if kind in (int, float):  # JSON's true and false are Python ints
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        is_finite = is_number and abs(given) <= sys.float_info.max  # False for NaN, infinity, 10**400
        return is_finite and (kind is float or given == int(given))
    return kind is Any or (isinstance(kind, type) and isinstance(given, kind))


def _decode_dataclass(kind: Any, given: Mapping[str, Any], at: str) -> Any:
    hints = get_type_hints(kind)
    values = {}
    for field in fields(kind):
        place = f"{at}.{field.name}".lstrip(".")
        if field.name in given:
            values[field.name] = decode(hints[field.name], given[field.name], place)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise WrongFieldError(place, "missing")
    return kind(**values)
