"""Which objective a prompt is trained on, by hand."""

from __future__ import annotations

import pytest

from modpo.experiment.primary import REGRESSION, choose

PAIRS = {"a": [[0, 1]], "b": [[1, 0], [2, 0]]}
MARGINS = {"a": [1.0, 2.0, 3.0], "b": [0.0, 1.0, 5.0], "c": [9.0, 0.0, 4.0]}


@pytest.mark.parametrize(
    ("weights", "k", "pairs"),
    [
        ({"a": 0.6, "b": 0.3, "c": 0.1}, 0, [(0, 1)]),  # the largest of a and b
        ({"a": 0.2, "b": 0.3, "c": 0.5}, 1, [(1, 0), (2, 0)]),  # c is larger, but has no pairs
        ({"a": 0.5, "b": 0.5, "c": 0.0}, 0, [(0, 1)]),  # a tie: the first
        ({"a": 0.0, "b": 1.0, "c": 0.0}, 1, [(1, 0), (2, 0)]),  # an end point with pairs is plain DPO
        ({"a": 0.0, "b": 0.0, "c": 1.0}, REGRESSION, [(0, 1), (0, 2), (2, 1)]),  # one without is regression
    ],
)
def test_the_objective_with_pairs_and_the_largest_weight(weights, k, pairs):
    choice = choose(weights, PAIRS, MARGINS, 3)
    assert (choice.k, choice.pairs) == (k, pairs)


def test_a_named_objective_is_k_as_long_as_it_has_a_weight():
    assert choose({"a": 0.1, "b": 0.8, "c": 0.1}, PAIRS, MARGINS, 3, named="a").k == 0
    assert choose({"a": 0.0, "b": 0.8, "c": 0.2}, PAIRS, MARGINS, 3, named="a").k == 1


def test_a_prompt_without_pairs_of_k_is_trained_on_those_of_another_or_on_rewards():
    weights = {"a": 0.6, "b": 0.4, "c": 0.0}
    assert choose(weights, {"a": [], "b": [[0, 1]]}, MARGINS, 3).k == 1
    assert choose(weights, {}, MARGINS, 3).k == REGRESSION
    assert choose(weights, {"b": [[0, 1]]}, MARGINS, 3, named="a").k == REGRESSION


def test_the_one_objective_without_a_reward_is_k_whatever_its_weight():
    """b could be k by its weight, but then a would have to enter by a reward that it does not have."""
    only_b = {"b": MARGINS["b"]}
    assert choose({"a": 0.1, "b": 0.9}, PAIRS, only_b, 3).k == 0
    assert choose({"a": 0.1, "b": 0.9}, {"b": [[0, 1]]}, only_b, 3).pairs == []


def test_pairs_with_an_unknown_margin_are_left_out():
    gaps = {**MARGINS, "c": [9.0, 0.0, None]}
    weights = {"a": 0.0, "b": 0.9, "c": 0.1}
    assert choose(weights, PAIRS, gaps, 3).pairs == [(1, 0)]
    assert choose({**weights, "b": 1.0, "c": 0.0}, PAIRS, gaps, 3).pairs == [(1, 0), (2, 0)]  # not needed: kept
    assert choose({"a": 0.0, "b": 0.0, "c": 1.0}, PAIRS, gaps, 3).pairs == [(0, 1)]


def test_regression_calls_the_response_with_the_larger_weighted_reward_chosen():
    """0.5 b + 0.5 c = 4.5, 0.5, 4.5: a tie stays in order."""
    choice = choose({"a": 0.0, "b": 0.5, "c": 0.5}, {}, MARGINS, 3)
    assert (choice.k, choice.pairs) == (REGRESSION, [(0, 1), (0, 2), (2, 1)])


def test_below_a_weight_regression_takes_over_where_k_has_a_reward():
    weights = {"a": 0.3, "b": 0.1, "c": 0.6}
    assert choose(weights, PAIRS, MARGINS, 3, regression_below=0.3).k == 0
    assert choose(weights, PAIRS, MARGINS, 3, regression_below=0.31).k == REGRESSION
    assert choose(weights, PAIRS, MARGINS, 3, named="b", regression_below=0.2).k == REGRESSION
    unscored = {name: MARGINS[name] for name in ("b", "c")}
    assert choose(weights, PAIRS, unscored, 3, regression_below=0.9).k == 0  # there is nothing to regress on
    assert choose({"a": 1.0, "b": 0.0, "c": 0.0}, PAIRS, {}, 3, regression_below=1.0).k == 0


def test_pairs_are_read_where_k_s_reward_lacks_the_responses():
    """However small its weight: regression has nothing to compare."""
    margins = {"a": [None, None], "b": [1.0, 0.0]}
    assert choose({"a": 0.2, "b": 0.8}, {"a": [[0, 1]]}, margins, 2, regression_below=0.5).k == 0
    margins["a"] = [2.0, 0.0]
    assert choose({"a": 0.2, "b": 0.8}, {"a": [[0, 1]]}, margins, 2, regression_below=0.5).k == REGRESSION


def test_a_third_is_a_third_as_people_write_it():
    weights = {"a": 0.33, "b": 0.33, "c": 0.34}
    assert choose(weights, {"a": [[0, 1]]}, MARGINS, 3, regression_below=1 / 3).k == 0


def test_a_single_response_is_compared_with_nothing():
    assert choose({"c": 1.0}, {}, {"c": [1.0]}, 1).pairs == []
