"""Preference vectors: read, enumerated, named."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modpo.base import simplex
from modpo.base.errors import InputError

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
OBJECTIVES = ["helpful", "concise"]

relaxed = settings(deadline=None)
objective_names = st.lists(st.from_regex(NAME, fullmatch=True), min_size=1, max_size=4, unique=True)


@st.composite
def vectors(draw: st.DrawFn) -> dict[str, float]:
    names = draw(objective_names)
    raw = draw(st.lists(st.floats(0, 1), min_size=len(names), max_size=len(names)).filter(lambda w: sum(w) > 0.01))
    return simplex.read_weights(dict(zip(names, raw, strict=True)), names, where="here", normalize=True)


@relaxed
@given(names=objective_names, steps=st.integers(1, 6))
def test_lattice_has_as_many_vectors_as_there_are_ways_to_share_the_steps(names, steps):
    """Stars and bars: n steps among K objectives, C(n + K - 1, K - 1) ways."""
    lattice = simplex.lattice(names, steps)
    assert len(lattice) == math.comb(steps + len(names) - 1, len(names) - 1)
    assert simplex.unique(lattice) == lattice
    for weights in lattice:
        assert list(weights) == names
        assert math.fsum(weights.values()) == pytest.approx(1, abs=1e-12)
        assert all(value >= 0 for value in weights.values())


def test_lattice_between_two_objectives():
    """Quarters, the first objective falling from 1."""
    firsts = [weights["helpful"] for weights in simplex.lattice(OBJECTIVES, 4)]
    assert firsts == [1, 0.75, 0.5, 0.25, 0]


@relaxed
@given(points=st.integers(1, 60))
def test_interior_grid_stays_off_the_ends_and_is_evenly_spaced(points):
    """Cells of width 1/n, their middles: the ends are half a cell away."""
    grid = simplex.interior_grid(OBJECTIVES, points)
    firsts = [weights["helpful"] for weights in grid]
    assert len(grid) == points
    assert all(0 < value < 1 for weights in grid for value in weights.values())
    assert all(math.fsum(weights.values()) == pytest.approx(1) for weights in grid)
    assert firsts[0] == pytest.approx(1 - 1 / (2 * points))
    assert [a - b for a, b in itertools.pairwise(firsts)] == pytest.approx([1 / points] * (points - 1))


@relaxed
@given(weights=vectors())
def test_a_vectors_name_can_be_a_folder(weights):
    assert NAME.fullmatch(simplex.name(weights))


@relaxed
@given(weights=vectors())
def test_a_normalised_vector_is_a_preference_vector(weights):
    assert math.fsum(weights.values()) == pytest.approx(1)
    assert simplex.read_weights(weights, list(weights), where="here") == weights


def test_names_of_long_vectors_differ():
    """Beyond 64 characters the name is cut, and a digest keeps the vectors apart."""
    objectives = ["a" * 40, "b" * 40]
    names = {simplex.name(weights) for weights in simplex.lattice(objectives, 8)}
    assert len(names) == 9
    assert all(NAME.fullmatch(name) for name in names)


@relaxed
@given(weights=vectors(), times=st.integers(1, 3))
def test_unique_keeps_each_vector_once(weights, times):
    """Also with the objectives in another order."""
    turned = dict(reversed(weights.items()))
    other = simplex.read_weights(
        dict.fromkeys([*weights, "another/one"], 1), [*weights, "another/one"], where="", normalize=True
    )
    assert simplex.unique([weights] * times + [other, turned]) == [weights, other]


def test_unique_forgives_rounding():
    """0.1 + 0.2 is not 0.3 in floating point, but the same weight."""
    assert len(simplex.unique([{"a": 0.1 + 0.2, "b": 0.7}, {"a": 0.3, "b": 0.7}])) == 1
    assert len(simplex.unique([{"a": 0.3001, "b": 0.6999}, {"a": 0.3, "b": 0.7}])) == 2


def test_objectives_left_out_have_weight_0_and_the_order_is_the_objectives():
    weights = simplex.read_weights({"b": 0.25, "a": 0.75}, ["a", "c", "b"], where="here")
    assert list(weights.items()) == [("a", 0.75), ("c", 0.0), ("b", 0.25)]


@pytest.mark.parametrize(
    ("given_weights", "field", "words"),
    [
        ([0.5, 0.5], "weights", "expected a mapping"),
        ({"helpful": 0.7, "concise": 0.2}, "weights", "sum to 0.9"),
        ({"helpful": 0, "concise": 0}, "weights", "all weights are 0"),
        ({"helpful": -0.1, "concise": 1.1}, "weights.helpful", "negative"),
        ({"helpful": math.nan, "concise": 1}, "weights.helpful", "not finite"),
        ({"helpful": math.inf, "concise": 1}, "weights.helpful", "not finite"),
        ({"helpful": "0,7", "concise": 0.3}, "weights.helpful", "decimal comma"),
        ({"helpful": "much", "concise": 0.3}, "weights.helpful", "not a number"),
        ({"helpful": True}, "weights.helpful", "not a number"),
        ({"helpful": None, "concise": 1}, "weights.helpful", "not a number"),
        ({"helpfull": 1.0}, "weights.helpfull", "unknown objective"),
    ],
)
def test_a_bad_vector_is_refused(given_weights, field, words):
    with pytest.raises(InputError, match=words) as caught:
        simplex.read_weights(given_weights, OBJECTIVES, where="file.yaml:3")
    [problem] = caught.value.problems
    assert (problem.where, problem.field) == ("file.yaml:3", field)
    assert problem.fix


def test_several_bad_weights_are_told_at_once():
    with pytest.raises(InputError) as caught:
        simplex.read_weights({"helpful": -1, "concise": "x", "other": 1}, OBJECTIVES, where="here")
    assert {p.field for p in caught.value.problems} == {"weights.helpful", "weights.concise", "weights.other"}


def test_scales_are_spread_around_the_middle():
    assert simplex.spread_out({"a": 0.8, "b": 0.2}, 1.0) == pytest.approx({"a": 0.8, "b": 0.2})
    assert simplex.spread_out({"a": 1.0, "b": 0.0}, 2.0) == pytest.approx({"a": 1.5, "b": -0.5})
    three = simplex.spread_out({"a": 0.6, "b": 0.3, "c": 0.1}, 3.0)
    assert sum(three.values()) == pytest.approx(1)
    assert three == pytest.approx({"a": 17 / 15, "b": 7 / 30, "c": -11 / 30})


def test_weights_whose_sum_overflows():
    huge = {"a": 1e308, "b": 1e308}
    assert simplex.read_weights(huge, ["a", "b"], where="x", normalize=True) == {"a": 0.5, "b": 0.5}
    with pytest.raises(InputError, match="weights sum to inf, not 1"):
        simplex.read_weights(huge, ["a", "b"], where="x")
