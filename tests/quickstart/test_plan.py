"""The quickstart does what fits into the time, says so, and goes on with what it began."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

from modpo.base.errors import InputError
from modpo.base.progress import duration
from modpo.cli import main
from modpo.data.groups import group_rows
from modpo.data.sources import open_rows
from modpo.experiment.sections import ModelSection
from modpo.quickstart import FULL, PROMPTS, quickstart_experiment
from modpo.quickstart.plan import FILE, SHARE, Plan, make_plan
from modpo.quickstart.rates import measure_rates
from modpo.quickstart.size import FAST, SEPARATE_FAST, Rates, Size, largest_within, sizes

QUICK = Rates(sampling=5000, reading=8000, training=5000)


def slower(times: float) -> Rates:
    return Rates(QUICK.sampling / times, QUICK.reading / times, QUICK.training / times)


def planned(folder: Path, rates: Rates, *, fast: bool = False, minutes: float | None = None) -> Plan:
    return make_plan(folder, lambda: rates, separate=False, fast=fast, minutes=minutes)


@pytest.mark.parametrize("separate", [True, False])
def test_sizes_go_from_full_to_fast_and_each_takes_less(separate: bool) -> None:
    choices = sizes(separate=separate)
    assert choices[-1] == (SEPARATE_FAST if separate else FAST)
    taken = [sum(size.seconds(slower(20)).values()) for size in choices]
    assert all(a > b for a, b in itertools.pairwise(taken))


def test_the_sizes_in_the_documents_are_these() -> None:
    text = (Path(__file__).parents[2] / "docs" / "commands.md").read_text("utf-8")
    table = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \|$", text, flags=re.M)
    expected = [(s.train_prompts, s.held_out_prompts, s.vectors) for s in sizes(separate=False)]
    assert [tuple(map(int, row)) for row in table] == expected


@pytest.mark.parametrize("times", [1, 3, 5, 8, 12, 20, 30])
def test_the_largest_size_that_fits_is_taken(times: float) -> None:
    rates, choices = slower(times), sizes(separate=False)
    chosen = largest_within(600, rates, choices)
    fits = [size for size in choices if sum(size.seconds(rates).values()) <= 600]
    assert chosen == (fits[0] if fits else FAST)
    if fits:
        assert sum(chosen.seconds(rates).values()) <= 600


def test_a_quick_machine_does_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(tmp_path, QUICK)
    assert plan.size == FULL
    assert capsys.readouterr().err.splitlines() == [
        "this machine: 5000 tokens a second are sampled, 8000 read, 5000 trained on",
        f"plan: 128 prompts to train on, 112 to measure on, 9 preference vectors: about {duration(plan.seconds)}",
    ]


def test_a_slow_one_does_less_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(tmp_path, slower(20))
    said = capsys.readouterr().err.splitlines()
    assert said[1].startswith("the full size (128 prompts to train on, 112 to measure on, 9 preference vectors) would")
    assert said[2] == f"plan: {plan.size}: about {duration(plan.seconds)}"
    assert plan.seconds <= SHARE * 15 * 60
    more = planned(tmp_path / "longer", slower(20), minutes=40)
    assert more.seconds > plan.seconds


def test_what_does_not_fit_at_all_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(tmp_path, slower(30), minutes=1).size == FAST
    assert "more than 1 min 0 s: it is the smallest size" in capsys.readouterr().err


def test_fast_is_the_smallest_on_every_machine(tmp_path: Path) -> None:
    assert planned(tmp_path, QUICK, fast=True).size == FAST


def test_the_same_command_goes_on_with_what_it_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine that is busier today does not turn it into another experiment, and is not measured again."""
    first = planned(tmp_path, slower(10), minutes=10)

    def measured() -> Rates:
        raise AssertionError("measured again")

    capsys.readouterr()
    for minutes in (None, 10):
        assert make_plan(tmp_path, measured, separate=False, fast=False, minutes=minutes) == first
    assert f"plan: {first.size}, as it was begun" in capsys.readouterr().err
    other = "begun for 10 minutes and one training, not "
    for separate, fast, minutes, words in (
        (False, False, 20, "for 20 minutes and one training"),
        (False, True, None, "with the smallest size and one training"),
        (True, False, None, "for 15 minutes and a training for each vector"),
    ):
        with pytest.raises(InputError, match=f"{other}{words}; fix: name another folder"):
            make_plan(tmp_path, measured, separate=separate, fast=fast, minutes=minutes)


def test_a_folder_of_another_experiment_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("training: {beta: 0.5}\n")
    with pytest.raises(InputError, match="holds an experiment that was not planned here; fix: name another folder"):
        planned(tmp_path, QUICK)
    assert not (tmp_path / FILE).exists()


def test_the_time_that_is_meant_by_default_can_be_named_later(tmp_path: Path) -> None:
    first = planned(tmp_path, slower(10))
    assert planned(tmp_path, QUICK, minutes=15) == first
    fast = planned(tmp_path / "fast", QUICK, fast=True)
    assert planned(tmp_path / "fast", slower(2), fast=True) == fast
    with pytest.raises(InputError, match="begun with the smallest size and one training, not for 30 minutes"):
        planned(tmp_path / "fast", QUICK, minutes=30)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"size": {"prompts": 3}, "expected": {}, "asked": {}}'])
def test_a_plan_that_cannot_be_read_is_made_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert planned(tmp_path, QUICK).size == FULL
    assert planned(tmp_path, slower(30)).size == FULL


def test_the_experiment_has_the_size(tmp_path: Path) -> None:
    size = Size(64, 32, 3, 40, separate=True)
    experiment = quickstart_experiment(tmp_path, size)
    assert experiment.sample.max_prompts == 64
    assert experiment.sample.held_out == experiment.data.eval_prompts == 32
    assert len(experiment.sweep.weights) == 3
    assert experiment.evaluation.max_new_tokens == 40
    assert experiment.method.mode == "separate"
    assert experiment.training.num_train_epochs == 1.0


def test_rates_are_measured_with_the_model(tmp_path: Path, tiny_model: Path) -> None:
    experiment = quickstart_experiment(tmp_path / "out", FULL)
    experiment = replace(experiment, model=ModelSection(str(tiny_model), dtype="float32"), cache_dir=tmp_path)
    prompts = group_rows(open_rows(str(PROMPTS)), format="prompts")
    rates = measure_rates(experiment, prompts)
    assert min(rates.sampling, rates.reading, rates.training) > 0
    assert rates.reading > rates.training  # which reads too
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("minutes", ["0", "-3", "soon", "inf", "nan"])
def test_minutes_that_are_none(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--minutes", minutes]) == 2
    assert f"{minutes!r} is no number of minutes above 0" in capsys.readouterr().err


def test_fast_and_minutes_are_one_or_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart", "--fast", "--minutes", "5"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err
