"""front.json and front.csv round trip, and refuse what is wrong."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from modpo.base.costs import Cost
from modpo.base.errors import InputError, IntegrityError, NumericError
from modpo.front.audit import Audit
from modpo.front.pareto import Hypervolume, Score
from modpo.front.schema import Estimate, FailedPoint, Front, FrontObjective, Point, read_front, write_front
from modpo.policies.steered_front import load_front


def make_front(folder):
    def policy(name, good, long, **more):
        scores = {"good": Score(good, good - 0.1, good + 0.1), "long": Score(long, long - 1, long + 1)}
        length, cost = Estimate(30.5, 1.5), Cost(12.5, 4096)
        return Point(name, scores, Estimate(0.1 + 0.2, 0.05), length, cost, **{"dominated": False} | more)

    return Front(
        folder=folder,
        objectives=[FrontObjective("good", True, "points"), FrontObjective("long", False, "words", 0.02, "m:f")],
        reference=policy("reference", 0.1, 50.0, dominated=True),
        points=[
            policy(
                "g1",
                0.9,
                40.0,
                weights={"good": 1.0, "long": 0.0},
                adapter="points/g1/adapter",
                audit=Audit(0.1 + 0.2, 0.75, 60, 20, ""),
            ),
            policy("l1", 0.3, 20.0, weights={"good": 0.25, "long": 0.75}, hypervolume_contribution=1 / 3),
        ],
        hypervolume=Hypervolume(14.0, 13.0, 15.0, {"good": 0.0, "long": 60.0}),
        evaluation={"seed": 0, "prompts": 3, "confidence": 0.95},
        failed=[FailedPoint("g0.5", {"good": 0.5, "long": 0.5}, "loss is NaN at step 3")],
        continuous=Cost(311.5, 29260),
    )


def test_front_round_trips_to_the_last_bit(tmp_path):
    front = make_front(tmp_path)
    write_front(front)
    assert read_front(tmp_path) == front
    assert vars(load_front(str(tmp_path))) == vars(front)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["front.csv", "front.json"]


def test_front_json_has_the_names_that_others_rely_on(tmp_path):
    write_front(make_front(tmp_path))
    content = json.loads((tmp_path / "front.json").read_text())
    assert content["schema"] == 1
    assert content["objectives"][1] == {
        "name": "long", "maximize": False, "unit": "words", "scale": 0.02, "measured_by": "m:f",
        "proxy": "",
        "separate": False,
        "calibration": {"method": "none", "center": 0.0, "factor": 1.0, "fill": None, "fitted_on": ""},
        "held_out": None,
    }  # fmt: skip
    common = {"name", "adapter", "scores", "kl", "response_length", "cost", "dominated"}
    assert set(content["reference"]) == common
    assert content["reference"]["adapter"] is None
    assert set(content["points"][0]) == common | {"weights", "best_of_n", "hypervolume_contribution", "audit"}
    assert content["points"][0]["scores"]["long"] == {"mean": 40.0, "ci_low": 39.0, "ci_high": 41.0}
    assert content["points"][0]["kl"] == {"mean": 0.1 + 0.2, "se": 0.05}
    assert set(content["hypervolume"]) == {"mean", "ci_low", "ci_high", "reference_point"}
    assert content["failed"][0]["reason"] == "loss is NaN at step 3"
    assert content["points"][0]["audit"] == {
        "slope": 0.1 + 0.2, "r2": 0.75, "pairs": 60, "prompts": 20, "verdict": "",
    }  # fmt: skip
    assert content["points"][1]["audit"] is None
    assert content["points"][0]["cost"] == {
        "seconds": 12.5, "tokens": 4096, "tokens_generated": 0, "forward_passes": 0, "backward_passes": 0,
        "peak_memory_bytes": 0, "devices": 1,
    }  # fmt: skip
    assert (content["continuous"]["seconds"], content["continuous"]["tokens"]) == (311.5, 29260)


def test_csv_has_a_row_for_each_policy_and_the_numbers_of_the_json(tmp_path):
    write_front(make_front(tmp_path))
    with (tmp_path / "front.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["reference", "g1", "l1"]
    assert [row["weight:long"] for row in rows] == ["", "0.0", "0.75"]
    assert (float(rows[1]["good_ci_low"]), float(rows[2]["kl_mean"])) == (0.9 - 0.1, 0.1 + 0.2)
    assert float(rows[2]["hypervolume_contribution"]) == 1 / 3
    assert [row["audit_slope"] for row in rows] == ["", str(0.1 + 0.2), ""]
    assert [row["audit_r2"] for row in rows] == ["", "0.75", ""]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_named_and_nothing_is_written(tmp_path, bad):
    front = make_front(tmp_path)
    front.points[1].scores["long"] = Score(1.0, bad, 2.0)
    with pytest.raises(NumericError, match=r"points\.1\.scores\.long\.ci_low"):
        write_front(front)
    with pytest.raises(NumericError, match=r"evaluation\.seed"):
        write_front(replace(make_front(tmp_path), evaluation={"seed": bad}))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_front(tmp_path, monkeypatch):
    write_front(make_front(tmp_path))
    changed = replace(make_front(tmp_path), failed=[])

    def no_space(self, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_front(changed)
    assert read_front(tmp_path) == make_front(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["front.csv", "front.json"]


def unsealed_front(folder):
    """The content of front.json without its seal, as one who writes it by hand would have it."""
    content = json.loads((folder / "front.json").read_text())
    del content["sha256"]
    return content


def edited(path, value):
    """A change of one field of front.json, by its path; `...` deletes it."""

    def edit(content):
        *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        for key in parents:
            content = content[key]
        if value is ...:
            del content[last]
        else:
            content[last] = value

    return edit


BROKEN = [
    ("schema", ..., "schema: missing"),
    ("schema", 2, "schema: 2 is newer than 1.*update modpo"),
    ("points.0.scores.good.mean", "0.9", r"points\.0\.scores\.good\.mean: expected a finite number, got '0\.9'"),
    ("points.0.scores.good.mean", True, "expected a finite number"),
    ("points.0.scores.good.mean", 10**400, "expected a finite number"),
    ("points.0.scores.good.mean", ..., r"points\.0\.scores\.good\.mean: missing"),
    ("points.0.scores.good.mean", math.nan, "NaN is not a finite number"),
    ("points.0.scores.long", ..., r"points\.0\.scores: expected one score for each of"),
    ("points.0.dominated", 1, "expected true or false"),
    ("points.0.cost.tokens", 1.5, "expected a whole number"),
    ("points.0.weights", ..., r"points\.0\.weights: expected a mapping"),
    ("points.0.weights.good", 0.5, r"points\.0\.weights: weights sum to 0\.5"),
    ("points.0.adapter", "../other", "leaves the folder"),
    ("points.0.adapter", "/etc", "leaves the folder"),
    ("points.0.audit.slope", "1", r"points\.0\.audit\.slope: expected a finite number"),
    ("points.0.audit.r2", 1.01, r"points\.0\.audit\.r2: expected a number from 0 to 1, got 1\.01"),
    ("points.0.audit.pairs", 0, r"points\.0\.audit\.pairs: expected at least 1, got 0"),
    ("points.0.audit.prompts", -1, r"points\.0\.audit\.prompts: expected at least 1, got -1"),
    ("points.0.audit.verdict", "fine", r"points\.0\.audit\.verdict: expected one of .*undertrained"),
    ("continuous", {"seconds": 1.0}, r"continuous\.tokens: missing"),
    ("points.0.name", "l1", r"points\.1\.name"),
    ("points.0.name", "reference", r"points\.0\.name"),
    ("points", {}, "points: expected a list"),
    ("points.1", None, r"points\.1: expected an object"),
    ("hypervolume.reference_point.long", ..., r"hypervolume\.reference_point"),
    ("objectives.1.name", "good", "objectives: expected distinct names"),
    ("evaluation.seed", math.inf, "Infinity is not a finite number"),
]


@pytest.mark.parametrize(("path", "value", "message"), BROKEN, ids=[f"{p}={v!r:.20}" for p, v, _ in BROKEN])
def test_a_broken_front_is_refused_by_field(tmp_path, path, value, message):
    write_front(make_front(tmp_path))
    file, content = tmp_path / "front.json", unsealed_front(tmp_path)
    edited(path, value)(content)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as refused:
        read_front(tmp_path)
    assert str(file) in str(refused.value)
    assert "fix:" in str(refused.value)


def test_every_flipped_bit_of_a_front_is_found(tmp_path):
    write_front(make_front(tmp_path))
    file = tmp_path / "front.json"
    whole = file.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        with pytest.raises((InputError, IntegrityError)):
            read_front(tmp_path)


def test_an_edited_front_is_refused_and_the_advice_helps(tmp_path):
    write_front(make_front(tmp_path))
    file = tmp_path / "front.json"
    content = json.loads(file.read_text())
    content["reference"]["cost"]["tokens"] += 1
    file.write_text(json.dumps(content, indent=2) + "\n")
    with pytest.raises(IntegrityError, match=r"front\.json: it was changed; fix: .*take 'sha256' out of it"):
        read_front(tmp_path)
    del content["sha256"]
    file.write_text(json.dumps(content))
    assert read_front(tmp_path).reference.cost.tokens == content["reference"]["cost"]["tokens"]


def test_an_unknown_field_is_left_out(tmp_path):
    write_front(make_front(tmp_path))
    content = unsealed_front(tmp_path)
    content["points"][0]["seen_later"] = 1
    (tmp_path / "front.json").write_text(json.dumps(content))
    assert read_front(tmp_path) == make_front(tmp_path)


@pytest.mark.parametrize("content", [b"{\n", b"[]", b"3", b"\xff\xfe", b""])
def test_what_is_not_a_front_is_refused(tmp_path, content):
    (tmp_path / "front.json").write_bytes(content)
    with pytest.raises(InputError, match=r"front\.json"):
        read_front(tmp_path)


def test_a_missing_front_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no such file.*measure it first"):
        read_front(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_front(tmp_path / "nowhere")


def test_a_front_written_before_there_were_audits_is_read(tmp_path):
    write_front(make_front(tmp_path))
    content = unsealed_front(tmp_path)
    del content["continuous"], content["points"][0]["audit"], content["points"][1]["audit"]
    (tmp_path / "front.json").write_text(json.dumps(content))
    front = read_front(tmp_path)
    assert front.continuous is None
    assert [point.audit for point in front.points] == [None, None]


def test_an_audit_that_rounds_beyond_one_is_read(tmp_path):
    """R2 is a quotient of sums, which may come out as 1 and a bit."""
    front = make_front(tmp_path)
    exact = replace(front.points[0], audit=Audit(1.0, 1 + 2**-52, 6, 2, ""))
    write_front(replace(front, points=[exact]))
    assert read_front(tmp_path).points[0].audit == exact.audit
