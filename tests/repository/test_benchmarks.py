"""What benchmarks/continuous_vs_separate.py computes, on fronts whose hypervolumes can be done in the head."""

import importlib
import json
from pathlib import Path

import pytest

from modpo.base.costs import Cost
from modpo.front.pareto import Hypervolume, Score
from modpo.front.schema import Estimate, Front, FrontObjective, Point

OBJECTIVES = [FrontObjective("tone"), FrontObjective("words", maximize=False)]
PROMPTS = 4


def point(name, tone, words, seconds=0.0, tokens=0, weights=None):
    scores = {"tone": Score(tone, tone, tone), "words": Score(words, words, words)}
    zero = Estimate(0.0, 0.0)
    return Point(name, scores, zero, zero, Cost(seconds=seconds, tokens=tokens), False, weights)


def front(folder, points, continuous=None):
    """A front of {weight of tone: (tone, words)}; the reference scores 0 and 10, the reference point is -1 and 12."""
    folder.mkdir(parents=True)
    policies = [point("reference", 0.0, 10.0)]
    for weight, (tone, words) in points.items():
        policies.append(point(f"w{weight}", tone, words, 100.0, 50, {"tone": weight, "words": 1 - weight}))
    lines = [
        {"policy": p.name, "prompt_index": i, "rewards": {name: score.mean for name, score in p.scores.items()}}
        for p in policies
        for i in range(PROMPTS)
    ]
    (folder / "responses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    volume = Hypervolume(1.0, 1.0, 1.0, {"tone": -1.0, "words": 12.0})
    return Front(folder, OBJECTIVES, policies[0], policies[1:], volume, continuous=continuous)


@pytest.fixture
def continuous_vs_separate(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return importlib.import_module("benchmarks.continuous_vs_separate")


@pytest.fixture
def fronts(tmp_path):
    """Areas down to (-1, 12): separate 3 x 2 + 2 x 4 = 14; continuous 3 x 7 = 21. Above the reference 2 + 2 and 10."""
    separate = {0.75: (2.0, 10.0), 0.25: (1.0, 6.0)}
    continuous = {0.75: (2.0, 5.0), 0.25: (1.0, 6.0)}
    return {
        "separate": [front(tmp_path / "separate", separate)],
        "continuous": [front(tmp_path / "continuous", continuous, Cost(seconds=150.0, tokens=80))],
    }


def test_hypervolumes_are_divided(continuous_vs_separate, fronts):
    result = continuous_vs_separate.compare(fronts)
    assert result["hypervolume_ratio"] == pytest.approx({"mean": 21 / 14, "ci_low": 21 / 14, "ci_high": 21 / 14})
    assert result["hypervolume_ratio_above_reference"]["mean"] == pytest.approx(10 / 4)


def test_costs_are_in_trainings_of_one_vector(continuous_vs_separate, fronts):
    result = continuous_vs_separate.compare(fronts)
    assert result["cost_in_single_runs"] == pytest.approx(1.5)
    assert result["tokens_in_single_runs"] == pytest.approx(1.6)


def test_steps_that_go_against_the_weight_are_not_counted(continuous_vs_separate, fronts):
    steps = continuous_vs_separate.compare(fronts)["steps_that_follow_the_weight"]
    assert steps["separate"] == [{"tone": "1 of 1", "words": "1 of 1"}]
    assert steps["continuous"] == [{"tone": "1 of 1", "words": "0 of 1"}]


def test_no_ratio_where_there_is_nothing_to_divide_by(continuous_vs_separate, fronts, tmp_path):
    fronts["separate"] = [front(tmp_path / "worse", {0.75: (-0.5, 11.0), 0.25: (-0.6, 11.5)})]
    result = continuous_vs_separate.compare(fronts)
    assert result["hypervolume_ratio_above_reference"] is None
    assert result["hypervolume_ratio"]["mean"] == pytest.approx(21 / 0.5)
