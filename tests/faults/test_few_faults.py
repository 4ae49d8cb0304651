"""A few faults of every kind on real runs: part of `make test`. All of them: `make faults`."""

from __future__ import annotations

import pytest

from .harness import House

# (action, point, a part of what it is about): each kind of artefact, before and after it is renamed into its place.
STRIKES = [
    ("kill", "shard.row", "scored/reward"),
    ("kill", "shard.published", "scored/reference"),
    ("kill", "folder.flushed", "run/points"),
    ("kill", "step.done", ""),
    ("kill", "file.renamed", "front.json"),
    ("term", "file.written", "00001.arrow"),
    ("int", "folder.filled", "run/evaluation"),
    ("enospc", "file.flushed", "scored/tokens"),
    ("raise", "folder.flushed", "run/points"),
]


@pytest.mark.parametrize(("action", "point", "what"), STRIKES)
def test_a_fault_and_a_retry(house: House, action: str, point: str, what: str) -> None:
    if point not in {site.point for site in house.whole.sites}:
        pytest.skip(f"no run reaches {point}")
    assert house.strike(house.site(point, what), action).wrong == []


def test_every_kind_of_point_is_reached(house: House) -> None:
    """Otherwise the enumeration would leave something out without saying so."""
    points = {site.point for site in house.whole.sites}
    assert points >= {
        *(f"file.{at}" for at in ("begun", "written", "flushed", "renamed")),
        *(f"folder.{at}" for at in ("begun", "filled", "flushed", "cleared", "renamed")),
        *(f"shard.{at}" for at in ("row", "published")),
        "lock.taken",
    }
    places = {site.what for site in house.whole.sites}
    for part in ("scored/tokens/00001.arrow", "scored/samples", "scored/calibration", "run/points", "run/evaluation"):
        assert any(part in what for what in places), part
    for name in ("experiment.yaml", "front.json", "front.csv", "responses.jsonl", "front.png", "report.html"):
        assert f"run/{name}" in places


def test_in_parts_or_at_once(house: House) -> None:
    """The parts, on which faults are enumerated, come to the same points and end with the same bits."""
    at_once = {(site.point, site.what) for site in house.whole.sites}
    assert at_once == {(site.point, site.what) for part in house.parts for site in part.sites}
    assert house.parts[-1].expected == house.expected


def test_two_undisturbed_runs_are_equal(house: House) -> None:
    """The measure of all other tests: without it, they could not tell what a fault changed."""
    folder = house.new_case()
    assert house.retried(folder) == []
    assert len([name for name in house.expected if name.endswith("adapter_model.safetensors")]) == 2
    assert len([name for name in house.expected if name.endswith(".arrow")]) >= 10
