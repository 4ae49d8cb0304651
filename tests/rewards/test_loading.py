"""Rewards: what a function or column is given, what it may return, and what each refusal says."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from modpo.base.errors import InputError, NumericError
from modpo.experiment.objectives import RewardTraining
from modpo.experiment.sections import ModelSection, Objective, RewardSection
from modpo.rewards.batch import Reward, RewardBatch, RewardContext
from modpo.rewards.combined import Clipped, ColumnReward, WeightedSum
from modpo.rewards.loading import load_reward, probe, quick_rewards, reads_model

PLAIN = RewardBatch(
    prompts=["Say hi", "Say hi", "Count"],
    responses=["hi", "hello there", "one two three"],
    columns={"score": [0.5, -1.0, 2.0]},
    fields={"source": ["a", "a", "b"]},
    where=["rows.jsonl:1", "rows.jsonl:1", "rows.jsonl:2"],
)
CHAT = RewardBatch(
    prompts=[[{"role": "user", "content": "Say hi"}]],
    responses=[[{"role": "assistant", "content": "hi"}, {"role": "assistant", "content": "again"}]],
    columns={},
    fields={},
    where=["rows.jsonl:1"],
)

CONTEXT = RewardContext(ModelSection("unused"), Path("unused"), max_length=64)  # for rewards made of models only

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module into an otherwise unimportable working directory; forget it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))

    def write_module(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()

    return write_module


def load(reference: str, **kwargs: object) -> Reward:
    return load_section(RewardSection(function=reference, kwargs=kwargs))


def load_section(section: RewardSection) -> Reward:
    return load_reward(section, CONTEXT, where="e.yaml:7", name="short")


def returning(write: Write, expression: str) -> Reward:
    source = f"import numpy, torch\ndef f(completions, **_):\n    return {expression}\n"
    write("returns", source)
    return load("returns:f")


# What a function is given


def test_function_is_called_as_trl_calls_it(write: Write) -> None:
    write("seen", "calls = []\ndef f(**given):\n    calls.append(given)\n    return [0] * len(given['completions'])\n")
    reward = load("seen:f", factor=3)
    assert reward(PLAIN) == [0.0, 0.0, 0.0]
    assert reward(CHAT) == [0.0]
    plain, chat = sys.modules["seen"].calls
    assert plain == {
        "prompts": ["Say hi", "Say hi", "Count"],
        "completions": ["hi", "hello there", "one two three"],
        "score": [0.5, -1.0, 2.0],
        "source": ["a", "a", "b"],
        "factor": 3,
    }
    assert chat == {"prompts": CHAT.prompts, "completions": CHAT.responses, "factor": 3}


def test_only_named_arguments_are_passed(write: Write) -> None:
    """score * factor + number of letters, by hand: .5*2+2, -1*2+11, 2*2+13."""
    source = "def f(completions, score, factor=1):\n"
    source += "    return [s * factor + len(c) for s, c in zip(score, completions)]\n"
    write("named", source)
    assert load("named:f", factor=2)(PLAIN) == [3.0, 9.0, 17.0]


def test_a_function_that_edits_its_arguments_leaves_the_data_alone(write: Write) -> None:
    source = "def f(prompts, completions):\n    prompts.clear()\n"
    source += "    completions[0][0]['content'] = ''\n    return [1]\n"
    write("edits", source)
    load("edits:f")(CHAT)
    assert CHAT.prompts == [[{"role": "user", "content": "Say hi"}]]
    assert CHAT.responses[0][0] == {"role": "assistant", "content": "hi"}


def test_callable_objects_and_attributes_work(write: Write) -> None:
    source = "class Length:\n    def __call__(self, completions, **_):\n"
    source += "        return [len(c) for c in completions]\n"
    write("objects", source + "class Box:\n    length = Length()\n")
    assert load("objects:Box.length")(PLAIN) == [2.0, 11.0, 13.0]


def test_empty_batch_is_not_passed_on(write: Write) -> None:
    write("never", "def f(completions):\n    raise RuntimeError\n")
    assert load("never:f")(PLAIN.rows(0, 0)) == []


# What it may return


@pytest.mark.parametrize(
    "expression",
    [
        "[1, 2.5, -3]",
        "(1, 2.5, -3)",
        "numpy.array([1, 2.5, -3], dtype=numpy.float32)",
        "torch.tensor([1, 2.5, -3], dtype=torch.bfloat16, requires_grad=True)",
        "[numpy.float64(1), numpy.float16(2.5), numpy.int64(-3)]",
        "[torch.tensor(1), torch.tensor(2.5), -3]",
    ],
)
def test_numbers_of_every_kind(write: Write, expression: str) -> None:
    scores = returning(write, expression)(PLAIN)
    assert scores == [1.0, 2.5, -3.0]
    assert all(type(score) is float for score in scores)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("[1, 2]", r"rows\.jsonl:1:short: returns:f returned 2 scores, expected 3; fix: "),
        ("[]", "returned 0 scores, expected 3"),
        ("None", "returned NoneType, not a list"),
        ("1.0", "returned float, not a list"),
        ("numpy.array(1.0)", "returned float, not a list"),
        ("{c: 1 for c in completions}", "returned dict, not a list"),
        ("(1 for c in completions)", "returned generator, not a list"),
        ("numpy.ones((3, 1))", r"\[1\.0\] is not a number"),
        ("[1, 2, None]", r"rows\.jsonl:2:short: None is not a number \(response 'one two three'\)"),
        ("[1, 2, True]", r"rows\.jsonl:2:short: True is not"),
        ("[1, 2, numpy.bool_(True)]", r"rows\.jsonl:2:short: True is not"),
        ("[1, 2, '3']", r"rows\.jsonl:2:short: '3' is not"),
        ("[1, 2, 1j]", r"rows\.jsonl:2:short: 1j is not"),
        ("[float('nan'), 2, 'x']", r"rows\.jsonl:2:short: 'x' is not"),
    ],
)
def test_refused_returns(write: Write, expression: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        returning(write, expression)(PLAIN)


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "-numpy.inf", "torch.tensor(torch.nan)", "10**400"])
def test_not_finite(write: Write, value: str) -> None:
    with pytest.raises(NumericError, match=r"^rows\.jsonl:2:short: .* is not finite \(response 'one two three'\)"):
        returning(write, f"[1, 2, {value}]")(PLAIN)


def test_every_bad_row_is_named(write: Write) -> None:
    with pytest.raises(InputError) as caught:
        returning(write, "[None, 2, 'x']")(PLAIN)
    assert [problem.where for problem in caught.value.problems] == ["rows.jsonl:1", "rows.jsonl:2"]


def test_the_row_that_raises_is_named(write: Write) -> None:
    write("raises", "def f(completions):\n    return [1 / (len(c) - 13) for c in completions]\n")
    expected = r"^rows\.jsonl:2:short: raises:f raised ZeroDivisionError: .* on 1 response\(s\); fix: "
    with pytest.raises(InputError, match=expected):
        load("raises:f")(PLAIN)


def test_a_function_that_raises_on_whole_batches_only(write: Write) -> None:
    write("batchwise", "def f(completions):\n    assert len(completions) == 1, 'one only'\n    return [1]\n")
    with pytest.raises(InputError, match=r"raised AssertionError: one only on 3 response\(s\)"):
        load("batchwise:f")(PLAIN)


def test_a_field_that_the_data_lacks(write: Write) -> None:
    write("wants", "def f(completions, topic):\n    return [0 for c in completions]\n")
    with pytest.raises(InputError, match=r"^rows\.jsonl:1:topic: wants:f needs this field; fix: "):
        load("wants:f")(PLAIN)


# Loading


@pytest.mark.parametrize(
    ("reference", "source", "said"),
    [
        ("nowhere_at_all:f", None, "cannot import nowhere_at_all: ModuleNotFoundError: No module named"),
        ("bad:f", "def f(:\n", "cannot import bad: SyntaxError"),
        (
            "bad:f",
            "import nowhere_at_all\n",
            "cannot import bad: ModuleNotFoundError: No module named 'nowhere_at_all'",
        ),
        ("bad:f", "raise ValueError('two\\nlines')\n", "cannot import bad: ValueError: two lines"),
        ("bad:f", "import sys; sys.exit(3)\n", "cannot import bad: SystemExit: 3"),
        ("bad:g", "def f(completions): ...\n", "bad has no 'g'"),
        ("bad:f", "f = 3\n", "bad:f is of type int and cannot be called"),
        ("bad:f", "async def f(completions): ...\n", "is an async function"),
        ("bad:f", "def f(completions, /): ...\n", "positional-only"),
        ("bad:f", "def f(texts): ...\n", "takes no `completions`"),
        ("bad", "", "is not of the form package.module:function"),
        ("bad.py:f", "", "cannot import bad.py"),
        ("../bad:f", "", "is not of the form"),
        ("bad:f()", "", "is not of the form"),
    ],
)
def test_functions_that_cannot_be_loaded(write: Write, reference: str, source: str | None, said: str) -> None:
    if source is not None:
        write("bad", source)
    with pytest.raises(
        InputError, match=rf"^e\.yaml:7:objectives\.short\.reward: .*{re.escape(said)}.*; fix: "
    ) as caught:
        load(reference)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"colour": 1}, "takes no argument 'colour'; fix: use one of: completions, size"),
        ({"completions": []}, "`kwargs` sets 'completions'"),
        ({"size": float("nan")}, "cannot be written as JSON"),
        ({"size": {1, 2}}, "cannot be written as JSON"),
    ],
)
def test_refused_kwargs(write: Write, kwargs: dict[str, object], said: str) -> None:
    write("sized", "def f(completions, size=1): ...\n")
    with pytest.raises(InputError, match=re.escape(said)):
        load("sized:f", **kwargs)


@pytest.mark.parametrize("section", [RewardSection(), RewardSection(function="a:b", column="c")])
def test_exactly_one_source(section: RewardSection) -> None:
    with pytest.raises(InputError, match=r"^e\.yaml:7:objectives\.short\.reward: needs exactly one source; fix: "):
        load_section(section)


# Identity


def test_identity_changes_with_source_and_kwargs_only(write: Write, tmp_path: Path) -> None:
    source = "def f(completions, size=1):\n    return [size for c in completions]\n"
    write("known", source)
    first = load("known:f", size=2).identity
    assert load("known:f", size=2).identity == first == json.loads(json.dumps(first))
    assert load("known:f", size=3).identity != first
    assert str(tmp_path) not in json.dumps(first)
    write("known", source + "# changed\n")
    assert load("known:f", size=2).identity["source_sha256"] != first["source_sha256"]


def test_identity_of_a_re_exported_function_follows_its_definition(write: Write) -> None:
    write("inner", "def f(completions):\n    return [1 for c in completions]\n")
    write("outer", "from inner import f\n")
    first = load("outer:f").identity
    write("inner", "def f(completions):\n    return [2 for c in completions]\n")
    write("outer", "from inner import f\n")
    assert load("outer:f").identity["source_sha256"] != first["source_sha256"]


def test_identity_holds_the_versions_that_the_numbers_rest_on() -> None:
    version = importlib.metadata.version("vaderSentiment")
    assert load("modpo.rewards.text:vader_compound").identity["distributions"]["vaderSentiment"] == version
    assert "vaderSentiment" not in load("modpo.rewards.text:word_count").identity["distributions"]


def test_a_setting_stands_in_the_identity_as_its_function_says(write: Write) -> None:
    """A model's four letters, not its name: "tiny" and "huge" are the same, "large" is another."""
    source = "from modpo.rewards.function import identified_by\n"
    source += "@identified_by(model=lambda name: {'letters': len(name)})\n"
    source += "def f(completions, model='tiny', power=1):\n    return [len(model) ** power for c in completions]\n"
    write("settings", source)
    default = load("settings:f")
    assert default.identity["kwargs"] == {"model": {"letters": 4}}
    assert load("settings:f", model="huge").identity == default.identity
    assert load("settings:f", model="large", power=2).identity["kwargs"] == {"model": {"letters": 5}, "power": 2}
    assert load("settings:f", model="large")(PLAIN) == [5.0, 5.0, 5.0]
    from_data = RewardBatch(["p"], ["r"], {"power": [3.0]}, {"model": ["enormous"]}, ["rows.jsonl:1"])
    assert load("settings:f", power=1)(from_data) == [4.0]


def test_a_setting_that_the_function_lacks(write: Write) -> None:
    source = "from modpo.rewards.function import identified_by\n"
    write("misspelled", source + "@identified_by(modle=str)\ndef f(completions, model): ...\n")
    with pytest.raises(InputError, match="cannot import misspelled: TypeError: f has no argument 'modle'; fix: "):
        load("misspelled:f")


# Columns


def test_column_reads_the_data() -> None:
    reward = load_section(RewardSection(column="score"))
    assert reward(PLAIN) == [0.5, -1.0, 2.0]
    assert reward.identity == {"column": "score"}
    assert not reward.scores_new_text
    assert load("modpo.rewards.text:word_count").scores_new_text


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        (None, InputError, r"^rows\.jsonl:1:rating: no number for this response; fix: "),
        ([1.0, 2.0, None], InputError, r"^rows\.jsonl:2:rating: no number"),
        ([1.0, 2.0, "3"], InputError, r"^rows\.jsonl:2:rating: '3' is not a number"),
        ([1.0, 2.0, float("nan")], NumericError, r"^rows\.jsonl:2:rating: nan is not finite"),
    ],
)
def test_refused_columns(values: list[float | None] | None, error: type[Exception], said: str) -> None:
    columns = {} if values is None else {"rating": values}
    batch = RewardBatch(PLAIN.prompts, PLAIN.responses, columns, {}, PLAIN.where)
    with pytest.raises(error, match=said):
        load_section(RewardSection(column="rating"))(batch)


@pytest.mark.parametrize("missing", ["drop", "mean"])
def test_gaps_that_are_allowed_are_none(missing: str) -> None:
    gaps = RewardBatch(PLAIN.prompts, PLAIN.responses, {"rating": [None, 4, None]}, {}, PLAIN.where)
    reward = load_section(RewardSection(column="rating", missing=missing))
    assert reward(gaps) == [None, 4.0, None]
    assert reward(PLAIN) == [None, None, None]
    assert reward.identity != ColumnReward("rating").identity
    with pytest.raises(NumericError, match=r"^rows\.jsonl:2:rating: nan is not finite"):
        reward(RewardBatch(PLAIN.prompts, PLAIN.responses, {"rating": [None, 4, float("nan")]}, {}, PLAIN.where))


# Rewards made of rewards


class Recorded:
    """A reward that says how often it was released."""

    identity: ClassVar[dict[str, str]] = {"recorded": "lengths"}
    scores_new_text = True
    released = 0

    def __call__(self, batch: RewardBatch) -> list[float]:
        return [float(len(response)) for response in batch.responses]

    def release(self) -> None:
        self.released += 1


RATING = ColumnReward("rating", missing="drop")
GAPS = RewardBatch(PLAIN.prompts, PLAIN.responses, {"rating": [-3, None, 0.25]}, {}, PLAIN.where)


def test_clipped_by_hand() -> None:
    """Lengths 2, 11 and 13."""
    assert Clipped(Recorded(), 5, 12)(PLAIN) == [5.0, 11.0, 12.0]
    assert Clipped(RATING, -1.0, 0.0)(GAPS) == [-1.0, None, 0.0]


def test_weighted_sum_by_hand() -> None:
    """2 * length - rating: 4 + 3, a gap, 26 - 0.25."""
    assert WeightedSum([(2.0, Recorded()), (-1.0, RATING)])(GAPS) == [7.0, None, 25.75]
    assert WeightedSum([(0.0, RATING), (1.0, Recorded())])(GAPS) == [2.0, None, 13.0]  # weight 0 fills no gap
    assert WeightedSum([(1.0, Recorded())])(PLAIN.rows(0, 0)) == []


def test_combined_rewards_are_identified_by_what_they_are_made_of() -> None:
    lengths = Recorded()
    rewards: list[Reward] = [lengths, RATING, Clipped(lengths, 0, 1), Clipped(lengths, 0, 2), Clipped(RATING, 0, 1)]
    rewards += [WeightedSum([(1, lengths)]), WeightedSum([(2, lengths)]), WeightedSum([(1, RATING)])]
    rewards += [WeightedSum([(1, lengths), (2, RATING)]), WeightedSum([(2, lengths), (1, RATING)])]
    identities = [json.dumps(reward.identity) for reward in rewards]
    assert len(set(identities)) == len(rewards)
    assert json.dumps(Clipped(lengths, 0.0, 1.0).identity) == identities[2]
    assert json.dumps(WeightedSum([(1.0, lengths)]).identity) == identities[5]


def test_a_combination_scores_new_text_if_all_its_parts_do() -> None:
    assert Clipped(Recorded(), 0, 1).scores_new_text
    assert not Clipped(RATING, 0, 1).scores_new_text
    assert WeightedSum([(1, Recorded()), (1, Recorded())]).scores_new_text
    assert not WeightedSum([(1, Recorded()), (1, RATING)]).scores_new_text


def test_releasing_a_combination_releases_every_part() -> None:
    first, second = Recorded(), Recorded()
    WeightedSum([(1, Clipped(first, 0, 1)), (1, second)]).release()
    assert (first.released, second.released) == (1, 1)


def test_combinations_that_mean_nothing_are_refused() -> None:
    for low, high in ((1.0, 0.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="no number lies between"):
            Clipped(RATING, low, high)
    with pytest.raises(ValueError, match="at least one reward"):
        WeightedSum([])
    with pytest.raises(ValueError, match="weights must be finite"):
        WeightedSum([(float("inf"), RATING)])


def test_a_sum_of_an_experiment() -> None:
    """Words 1, 2, 3 clipped to at most 2, times 10, less the score .5, -1, 2: 9.5, 21, 18; clipped to 20."""
    words = RewardSection(function="modpo.rewards.text:word_count", clip=[0.0, 2.0], weight=10.0)
    reward = load_section(RewardSection(sum=[words, RewardSection(column="score", weight=-1.0)], clip=[0.0, 20.0]))
    assert reward(PLAIN) == [9.5, 20.0, 18.0]
    assert not reward.scores_new_text


# Probing


def test_probe_returns_the_first_scores() -> None:
    batch = RewardBatch(["p"] * 20, ["w " * n for n in range(20)], {}, {}, [f"r:{n}" for n in range(20)])
    assert probe(load("modpo.rewards.text:word_count"), batch) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_probe_refuses_chance(write: Write) -> None:
    write("chance", "import random\ndef f(completions):\n    return [random.random() for c in completions]\n")
    with pytest.raises(InputError, match=r"^rows\.jsonl:1:reward: not deterministic: "):
        probe(load("chance:f"), PLAIN)


def test_probe_warns_of_a_constant(write: Write) -> None:
    reward = returning(write, "[4 for c in completions]")
    with pytest.warns(UserWarning, match=r"rows\.jsonl:1: reward is 4 for each of the first 3 responses"):
        probe(reward, PLAIN)
    probe(reward, PLAIN.rows(0, 1))  # one response cannot differ: no warning, which would be an error here


def test_batch_of_ragged_lists_is_refused() -> None:
    with pytest.raises(ValueError, match="responses has 1 entries, but prompts has 2"):
        RewardBatch(["a", "b"], ["c"], {}, {}, ["r:1", "r:2"])


def test_array_results_equal_list_results() -> None:
    """The slow oracle of `tolist`: each element taken by itself."""
    values = np.random.default_rng(0).normal(size=50).astype(np.float32)
    batch = RewardBatch(["p"] * 50, ["r"] * 50, {"score": list(values)}, {}, ["r:1"] * 50)
    scores = ColumnReward("score")(batch)
    assert scores == [float(torch.tensor(values)[i]) for i in range(50)]


# --- what takes long


@pytest.mark.parametrize(
    ("section", "slow"),
    [
        (RewardSection(function="modpo.rewards.text:word_count"), False),
        (RewardSection(column="score"), False),
        (RewardSection(reward_model="some/model"), True),
        (RewardSection(implicit="some/adapter"), True),
        (RewardSection(train=RewardTraining("reward_model")), True),  # a model once it is trained
        (RewardSection(sum=[RewardSection(column="score"), RewardSection(reward_model="some/model")]), True),
        (RewardSection(sum=[RewardSection(sum=[RewardSection(train=RewardTraining("implicit"))])]), True),
        (RewardSection(sum=[RewardSection(column="score")]), False),
    ],
)
def test_which_rewards_read_a_model(section: RewardSection, slow: bool) -> None:
    column = ColumnReward("score")
    objectives = {"a": Objective("a", reward=section), "b": Objective("b", reward=RewardSection(column="score"))}
    assert reads_model(section) is slow
    assert set(quick_rewards(objectives, {"a": column, "b": column})) == ({"b"} if slow else {"a", "b"})
