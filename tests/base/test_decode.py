"""JSON into dataclasses: what fits, and what is named by its path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from modpo.base.decode import WrongFieldError, decode


@dataclass
class Leaf:
    mean: float
    count: int = 0


@dataclass
class Tree:
    name: str
    leaves: dict[str, Leaf]
    order: list[int] = field(default_factory=list)
    best: Leaf | None = None
    anything: Any = None


def test_nested_values_defaults_and_unknown_keys() -> None:
    given = {"name": "a", "leaves": {"x": {"mean": 1, "count": 2.0}}, "anything": [1, "b"], "new": "of a later version"}
    found = decode(Tree, given)
    assert found == Tree("a", {"x": Leaf(1.0, 2)}, anything=[1, "b"])
    assert (type(found.leaves["x"].mean), type(found.leaves["x"].count)) == (float, int)
    assert decode(Tree, {**given, "best": {"mean": 0.5}}).best == Leaf(0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 1}, "name: expected text, got 1"),
        ({"leaves": []}, "leaves: expected an object, got []"),
        ({"leaves": {"x": {}}}, "leaves.x.mean: missing"),
        ({"leaves": {"x": {"mean": True}}}, "leaves.x.mean: expected a finite number, got True"),
        ({"leaves": {"x": {"mean": float("nan")}}}, "leaves.x.mean: expected a finite number, got nan"),
        ({"leaves": {"x": {"mean": 10**400}}}, "leaves.x.mean: expected a finite number, got 1000"),
        ({"order": {"a": 1}}, "order: expected a list, got {'a': 1}"),
        ({"order": [1, 2.5]}, "order.1: expected a whole number, got 2.5"),
        ({"best": "none"}, "best: expected an object, got 'none'"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongFieldError) as caught:
        decode(Tree, {"name": "a", "leaves": {}, **changes})
    assert str(caught.value).startswith(message)
    assert caught.value.field == message.split(":")[0]
