"""The experiment file: what is accepted, what is refused, where the error points, and back to YAML."""

from __future__ import annotations

import math
import textwrap
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modpo.base.errors import InputError, Problem
from modpo.cli import main
from modpo.experiment import keys
from modpo.experiment.file import read_experiment, to_yaml
from modpo.experiment.objectives import RewardSection
from modpo.experiment.sections import Experiment, LoraSection, TrainingSection, resolved
from tools import experiment_reference as reference

GOOD = """\
# an experiment
model:
  model_name_or_path: some/model
data:
  path: rows.jsonl
  max_length: 512
objectives:
  positive:
    pairs: data
    reward: "package.module:function"
  concise:
    reward: {column: words}
    maximize: false
    scale: 0.5
training:
  beta: 0.1
  learning_rate: 5e-4
sweep:
  weights:
    - {positive: 0.7, concise: 0.3}
    - {positive: 0.3, concise: 0.7}
"""

# Line of the good file -> rows of (what stands there instead, field, words of the error, line that is named).
# The new lines are indented like the old one. The last of them is named, unless the row says another.
BAD_LINES: dict[str, list[tuple[str, ...]]] = {
    "# an experiment": [
        ("trainig: {}", "trainig", "unknown key; fix: did you mean `training`?"),
        ("seed: -1", "seed", "from 0"),
        ("seed: 1.5", "seed", "expected a whole number, got 1.5"),
        ("lora: 16", "lora", "expected a section of keys, got 16"),
        ("lora: {r: 0}", "lora.r", "at least 1"),
        ("lora: {lora_alpha: 0}", "lora.lora_alpha", "above 0"),
        ("lora: {lora_dropout: 1}", "lora.lora_dropout", "below 1"),
        ("lora: {target_modules: {}}", "lora.target_modules", "expected text, got a mapping"),
        ("lora: {modules_to_save: lm_head}", "lora.modules_to_save", "expected a list, got 'lm_head'"),
        ("lora: {modules_to_save: [1]}", "lora.modules_to_save[0]", "expected text, got 1"),
        ("sft: {path: x, arguments: {push_to_hub: true}}", "sft.arguments.push_to_hub", "would publish"),
        ("morlhf: {arguments: {hub_token: x}}", "morlhf.arguments.hub_token", "would publish"),
        ("evaluation: {confidence: 1}", "evaluation.confidence", "below 1"),
        ("evaluation: {confidence: 0}", "evaluation.confidence", "above 0"),
        ("evaluation: {temperature: 0}", "evaluation.temperature", "above 0"),
        ("evaluation: {batch_size: 0}", "evaluation.batch_size", "at least 1"),
        ('output_dir: "a\\0b"', "output_dir", "a name or path"),
        ("cache_dir: ''", "cache_dir", "a name or path"),
    ],
    "model_name_or_path: some/model": [
        ("dtype: float32", "model.model_name_or_path", "is missing", "model:"),
        ("model_name_or_path: m\ndtype: float64", "model.dtype", "one of: auto, bfloat16, float16, float32"),
        ("model_name_or_path: ' '", "model.model_name_or_path", "a name or path"),
        ("model_name_or_path: m\ntrust_remote_code: true", "model.trust_remote_code", "--trust-remote-code"),
    ],
    "path: rows.jsonl": [
        ("split: train", "data.path", "is missing", "data:"),
        ('path: "a\\0b"', "data.path", "a name or path"),
        ("path: !!python/object/apply:os.system [x]", "data.path", "!!python/object/apply:os.system is not"),
        ("path: !!python/name:os.system", "data.path", "not allowed"),
        ("path: !!binary aGk=", "data.path", "the tag !!binary is not allowed"),
    ],
    "max_length: 512": [
        ("max_length: 512.5", "data.max_length", "expected a whole number, got 512.5"),
        ("max_length: 1", "data.max_length", "at least 2"),
        ("max_prompt_length: 1024", "data.max_prompt_length", "no room for a response"),
        ("split: 3", "data.split", 'put it in quotes: "3"'),
        ("eval_path: {}", "data.eval_path", "expected text, got a mapping"),
    ],
    "pairs: data": [
        ("pairs: ''", "objectives.positive.pairs", "is empty; fix: name a label set"),
        ("calibration: units", "objectives.positive.calibration", "use one of: none, standardise"),
    ],
    "concise:": [
        ("con/cise:", "objectives.con/cise", "cannot be the name"),
        ("..:", "objectives...", "cannot be the name"),
        (f"{'c' * 65}:", f"objectives.{'c' * 65}", "1 to 64"),
        ("positive:", "objectives.positive", "is given twice, first in line 8"),
    ],
    "reward: {column: words}": [
        ("reward: {column: words, function: 'a:b'}", "objectives.concise.reward", "exactly one of"),
        (
            "reward: {column: words, kwargs: {a: 1}}",
            "objectives.concise.reward.kwargs",
            "is not for `column`, but for function",
        ),
        ("reward: {}", "objectives.concise.reward", "has no source; fix: give exactly one of function, column"),
        ("reward: not_a_function", "objectives.concise.reward.function", "write package.module:function"),
        ("reward: 'os;:system'", "objectives.concise.reward.function", "names no function"),
        ("reward: 3", "objectives.concise.reward", "expected a section of keys, got 3"),
        ("reward: {column: ''}", "objectives.concise.reward.column", "is empty"),
        ("reward: {reward_model: m, clip: [1, 0]}", "objectives.concise.reward.clip", "low below high"),
        ("reward: {reward_model: m, max_length: 0}", "objectives.concise.reward.max_length", "above 0"),
        ("reward: {reward_model: m, beta: 0.1}", "objectives.concise.reward.beta", "but for implicit"),
        ("reward: {implicit: m, dtype: int8}", "objectives.concise.reward.dtype", "one of: bfloat16"),
        ("reward: {column: w, weight: 2}", "objectives.concise.reward.weight", "use the objective's `scale`"),
        ("reward: {sum: []}", "objectives.concise.reward.sum", "give at least one reward"),
        ("reward: {sum: [{train: implicit}]}", "objectives.concise.reward.sum[0]", "cannot be part of a sum"),
        ("reward: {sum: ['nothing']}", "objectives.concise.reward.sum[0].function", "names no function"),
        ("reward: {train: guess}", "objectives.concise.reward.train.kind", "use one of: reward_model, implicit"),
        (
            "reward: {train: {kind: reward_model, arguments: {hub_model_id: x}}}",
            "objectives.concise.reward.train.arguments.hub_model_id",
            "would publish",
        ),
        (
            "reward: {train: {kind: implicit, eval_prompts: 0}}",
            "objectives.concise.reward.train.eval_prompts",
            "at least",
        ),
        ("calibration: standardise", "objectives.concise.calibration", "is of a reward"),
        ("reward: {column: a, missing: skip}", "objectives.concise.reward.missing", "error, drop, mean"),
        ("reward: {column: w}\ncalibration: bradley_terry", "objectives.concise.calibration", "it has none"),
        ("unit: words", "objectives.concise", "neither pairs nor a reward", "  concise:"),
        ("pairs: bradley_terry", "objectives.concise", "draws its pairs from a reward", "  concise:"),
    ],
    "scale: 0.5": [
        ("scale: -0.5", "objectives.concise.scale", "set `maximize: false`"),
        ("scale: 0", "objectives.concise.scale", "above 0"),
        ("name: other", "objectives.concise.name", "unknown key"),
    ],
    "training:": [("model:", "model", "is given twice, first in line 2")],
    "beta: 0.1": [
        ("betaa: 0.1", "training.betaa", "unknown key; fix: did you mean `beta`?"),
        ("learnin_rate: 0.1", "training.learnin_rate", "did you mean `learning_rate`?"),
        ("zzz: 0.1", "training.zzz", "use one of: beta, objective"),
        ("objective: funny", "training.objective", "'funny' is no objective; fix: use one of: positive, concise"),
        ("objective: concise", "training.objective", "'concise' has no pairs to train on; fix: name one of: positive"),
        ("beta: 0.1\nbeta: 0.2", "training.beta", "is given twice, first in line 16"),
        ("[1]: 0.1", "training.?", "not plain text"),
        ("!!python/name:os.system : 0.1", "training.?", "not plain text"),
        ("arguments: {x: {trust_remote_code: true}}", "training.arguments.x.trust_remote_code", "not allowed"),
        ("beta: abc", "training.beta", "expected a number, got 'abc'; fix: give a number, for instance 0.1"),
        ('beta: "0.1"', "training.beta", "expected a number, got '0.1'"),
        ("beta: true", "training.beta", "expected a number, got true"),
        ("beta:", "training.beta", "expected a number, got nothing"),
        ("beta: [0.1]", "training.beta", "expected a number, got a list"),
        ("beta: 0x10", "training.beta", "expected a number, got 0x10"),
        ("beta: 0,1", "training.beta", "'0,1' has a decimal comma; fix: write 0.1"),
        ("beta: .nan", "training.beta", ".nan is not finite"),
        ("beta: nan", "training.beta", "nan is not finite"),
        ("beta: -.inf", "training.beta", "-.inf is not finite"),
        ("beta: 1e999", "training.beta", "too large"),
        ("beta: -0.1", "training.beta", "is -0.1; fix: give a value that is above 0"),
        ("beta: 0", "training.beta", "above 0"),
        ("beta: !!str 5", "training.beta", "the tag !!str is not allowed"),
        ("packing: 1", "training.packing", "expected true or false, got 1"),
        ("per_device_train_batch_size: 0", "training.per_device_train_batch_size", "at least 1"),
        ("gradient_accumulation_steps: -2", "training.gradient_accumulation_steps", "at least 1"),
        ("loss_type: ipo", "training.loss_type", "one of: sigmoid, hinge"),
        ("max_steps: 0", "training.max_steps", "-1 for no limit"),
        ("warmup_steps: -1", "training.warmup_steps", "at least 0"),
        ("arguments: {adam_epsilon: .inf}", "training.arguments.adam_epsilon", "not finite"),
        ("arguments: {adam_beta1: 0,9}", "training.arguments.adam_beta1", "write 0.9"),
        ("arguments: {at: 1:30}", "training.arguments.at", "a text in quotes"),
        ("arguments: {x: !mine 3}", "training.arguments.x", "the tag !mine is not allowed"),
        ("arguments: !!python/object:os.X {}", "training.arguments", "tag !!python/object:os.X is not allowed"),
        ("arguments: {beta: 0.2}", "training.arguments.beta", "set `training.beta` instead"),
        ("arguments: {output_dir: x}", "training.arguments.output_dir", "set `output_dir` instead"),
        ("arguments: {push_to_hub: true}", "training.arguments.push_to_hub", "would publish what is trained"),
    ],
    "learning_rate: 5e-4": [
        ("learning_rate: -5e-4", "training.learning_rate", "above 0"),
        ("learning_rate: 5e-4 e", "training.learning_rate", "got '5e-4 e'"),
    ],
    "weights:": [
        ("grid: 5\nweights:", "sweep", "weights and grid exclude each other", "sweep:"),
        ("normalise: true\nweights:", "sweep.normalise", "did you mean `normalize`?", "  normalise: true"),
    ],
    "- {positive: 0.7, concise: 0.3}": [
        ("- [0.7, 0.3]", "sweep.weights[0]", "expected a mapping of objective to weight"),
        ("- {positive: 1.3, concise: -0.3}", "sweep.weights[0].concise", "negative"),
        ("- {positive: 0.7, concise: 0.2}", "sweep.weights[0]", "`normalize: true`"),
        ("- {positive: .nan, concise: 0.3}", "sweep.weights[0].positive", "not finite"),
        ("- {positive: 0.7, concize: 0.3}", "sweep.weights[0].concize", "use one of: positive, concise"),
        ("- positive: 0.7\n  concise: 0,3", "sweep.weights[0].concise", "write 0.3"),
        ("- {positive: 0.5, concise: 0,5}", "sweep.weights[0].concise", "'0,5' has a decimal comma"),
        ("- {positive: '0.7', concise: 0.3}", "sweep.weights[0].positive", "not a number"),
    ],
}
ROWS = [
    pytest.param(old, *row[:3], row[3] if len(row) > 3 else "", id=row[0])
    for old, rows in BAD_LINES.items()
    for row in rows
]


def write(folder: Path, text: str | bytes) -> Path:
    file = folder / "experiment.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def changed(old: str, new: str) -> tuple[str, str]:
    """The good file with `new` where the line `old` stands, and the last line that was put in."""
    [line] = [line for line in GOOD.splitlines() if line.strip() == old]
    put_in = textwrap.indent(new, line.removesuffix(old))
    return GOOD.replace(f"{line}\n", f"{put_in}\n", 1), put_in.splitlines()[-1]


def read(folder: Path, text: str, *overrides: str) -> Experiment:
    return read_experiment(write(folder, text), overrides)


def problems_of(file: Path, *overrides: str) -> list[Problem]:
    with pytest.raises(InputError) as caught:
        read_experiment(file, overrides)
    return caught.value.problems


@pytest.mark.parametrize(("old", "new", "field", "words", "named"), ROWS)
def test_a_bad_line_is_named(tmp_path, monkeypatch, capsys, old, new, field, words, named):
    """File, line and field on standard error, exit code 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    text, last_line = changed(old, new)
    lines = text.splitlines()
    number = len(lines) - lines[::-1].index(named or last_line)  # the last one that looks like this
    file = write(tmp_path, text)

    assert main(["score", str(file)]) == 2

    printed = capsys.readouterr().err.splitlines()
    here = [line for line in printed if line.startswith(f"error: {file}:{number}:{field}: ")]
    assert any(words in line for line in here), printed
    assert all(line.startswith("error: ") and "; fix: " in line for line in printed)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", "", "is empty"),
        (b"# only a comment\n", "", "is empty"),
        (b"- a\n- b\n", ":1", "expected sections, got a list"),
        (b"just words\n", ":1", "expected sections, got 'just words'"),
        (b"!!python/object:os.X {a: 1}\n", "", "the tag !!python/object:os.X is not allowed"),
        (b"model:\n\tbeta: 1\n", ":2", "not YAML"),
        (b"model: {a: 1\n", ":2", "not YAML"),
        (b"model: a: b\n", ":1", "not YAML"),
        (b"model: {}\n---\nmodel: {}\n", ":2", "one document"),
        (b"model: {}\ndata: caf\xe9\n", ":2", "is not UTF-8 text"),
        (b"model: \x00\n", "", "not YAML"),
        (b"a: &a {b: 1}\nc: *a\n", ":2", "*a is an alias"),
        (b"a: &a [*a]\n", ":1", "*a is an alias"),
        (b"a:\n  - " + b"[" * 5000 + b"]" * 5000, ":2", "nested deeper"),
    ],
)
def test_a_file_that_is_no_experiment(tmp_path, capsys, content, line, words):
    file = write(tmp_path, content)
    assert main(["train", str(file), "--weights", "a=1"]) == 2
    [printed] = capsys.readouterr().err.splitlines()
    assert printed.startswith(f"error: {file}{line}:")
    assert words in printed
    assert "; fix: " in printed


@pytest.mark.parametrize(
    ("name", "words"),
    [("none.yaml", "no such file"), (".", "is a directory"), ("x" * 300, "cannot be read"), ("a\0b", "cannot be read")],
)
def test_a_path_that_is_no_file(tmp_path, capsys, name, words):
    assert main(["inspect", f"{tmp_path}/{name}"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert words in printed


def test_nothing_in_a_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, _ = changed("path: rows.jsonl", "path: !!python/object/apply:os.system ['touch ran']")
    problems_of(write(tmp_path, text))
    assert not Path("ran").exists()


def test_all_problems_are_told_at_once(tmp_path):
    """Structure, types, ranges, objectives and weights, in one go."""
    text = GOOD.replace("beta: 0.1", "beta: -1\n  bta: 2").replace("512", "abc").replace("0.7, c", "0.8, c")
    text = text.replace("some/model", "").replace("{column: words}", "{column: words, kwargs: 3}")
    fields = {problem.field for problem in problems_of(write(tmp_path, text))}
    assert fields == {
        "model.model_name_or_path",
        "data.max_length",
        "objectives.concise.reward.kwargs",
        "training.beta",
        "training.bta",
    }
    text = GOOD.replace("beta: 0.1", "beta: -1").replace("{positive: 0.7, c", "{positive: 0.8, c")
    fields = {problem.field for problem in problems_of(write(tmp_path, text))}
    assert fields == {"training.beta", "sweep.weights[0]"}


def test_at_most_twenty_problems_are_shown(tmp_path, capsys):
    file = write(tmp_path, GOOD + "".join(f"unknown{i}: 1\n" for i in range(25)))
    assert main(["score", str(file)]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 21
    assert printed[-1] == "error: and 5 more"


def test_a_good_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MODPO_CACHE", "/some/cache")
    experiment = read(tmp_path, GOOD)
    assert experiment.training == TrainingSection(beta=0.1, learning_rate=0.0005)
    assert experiment.lora == LoraSection()
    assert experiment.objectives["positive"].reward == RewardSection(function="package.module:function")
    assert experiment.label_sets == {"positive": "data"}
    assert experiment.objectives["concise"].sign == -0.5
    assert experiment.objectives["concise"].reward == RewardSection(column="words")
    assert experiment.sweep.weights == [{"positive": 0.7, "concise": 0.3}, {"positive": 0.3, "concise": 0.7}]
    assert experiment.output_dir == Path("runs/experiment")
    assert experiment.cache_dir == Path("/some/cache")
    assert experiment.model.trust_remote_code is False
    assert experiment.where("training.beta") == f"{tmp_path}/experiment.yaml:16"
    assert experiment.where("training.max_steps") == f"{tmp_path}/experiment.yaml:15"
    assert experiment.where("evaluation.batch_size") == f"{tmp_path}/experiment.yaml"


def test_defaults_of_the_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("MODPO_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    experiment = read(tmp_path, GOOD)
    assert experiment.cache_dir == Path("/home/someone/.cache/modpo")
    assert read(tmp_path, GOOD, "output_dir=~/runs").output_dir == Path("/home/someone/runs")


def test_remote_code_is_trusted_only_by_the_caller(tmp_path):
    assert read_experiment(write(tmp_path, GOOD), trust_remote_code=True).model.trust_remote_code is True
    [problem] = problems_of(write(tmp_path, GOOD), "model.trust_remote_code=true")
    assert problem.where == "`overrides`"


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1e-5", 1e-5), ("5E-4", 5e-4), ("1e3", 1000.0), (".5", 0.5), ("2", 2.0), ("+0.1", 0.1), ("1_000.5", 1000.5)],
)
def test_numbers_as_people_write_them(tmp_path, written, meant):
    experiment = read(tmp_path, changed("beta: 0.1", f"beta: {written}")[0])
    assert experiment.training.beta == meant
    assert isinstance(experiment.training.beta, float)
    arguments = read(tmp_path, GOOD, f"training.arguments={{eps: {written}}}").training.arguments
    assert arguments == {"eps": meant}


def test_whole_numbers_and_text_stay_what_they_are(tmp_path):
    written = "{a: 1e-8, b: '1e-8', c: 7, d: 007, e: 2024-01-01, f: yes, g: 'yes', h: ~, i: [1, nan], 1: x}"
    arguments = read(tmp_path, GOOD, f"training.arguments={written}").training.arguments
    assert arguments == {
        "a": 1e-8, "b": "1e-8", "c": 7, "d": 7, "e": "2024-01-01", "f": True, "g": "yes", "h": None,
        "i": [1, "nan"], "1": "x",
    }  # fmt: skip
    assert isinstance(arguments["c"], int)
    steps = read(tmp_path, GOOD, "training.max_steps=1e3").training.max_steps
    assert steps == 1000
    assert isinstance(steps, int)


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + GOOD.encode(), GOOD.replace("\n", "\r\n").encode()])
def test_byte_order_mark_and_windows_lines_are_accepted(tmp_path, content):
    assert read_experiment(write(tmp_path, content)) == read_experiment(write(tmp_path, GOOD))


def test_lora_left_out_is_the_default_and_null_is_none(tmp_path):
    assert read(tmp_path, GOOD).lora == LoraSection()
    assert read(tmp_path, GOOD + "lora:\n").lora is None
    assert read(tmp_path, GOOD + "lora: {target_modules: [q_proj]}\n").lora == LoraSection(target_modules=["q_proj"])


@pytest.mark.parametrize(
    ("lora", "dtype", "expected"),
    [
        ("null", "", "float32"),
        ("null", ", dtype: auto", "float32"),
        ("null", ", dtype: bfloat16", "bfloat16"),
        ("{r: 4}", "", "auto"),
        ("{r: 4}", ", dtype: float32", "float32"),
    ],
)
def test_all_weights_are_trained_in_float32_unless_the_file_says_otherwise(tmp_path, lora, dtype, expected):
    text = (
        f"model: {{model_name_or_path: m{dtype}}}\nlora: {lora}\ndata: {{path: d}}\nobjectives: {{a: {{pairs: data}}}}"
    )
    experiment = read(tmp_path, text)
    assert experiment.model.dtype == expected
    assert read(tmp_path, to_yaml(experiment)).model.dtype == expected


def test_a_heading_above_nothing_is_a_section_of_defaults(tmp_path):
    assert read(tmp_path, GOOD + "evaluation:\n  # batch_size: 4\n").evaluation.batch_size == 48


# --- the command line's --set


def test_overrides_replace_and_add(tmp_path):
    experiment = read(
        tmp_path,
        GOOD,
        "training.beta=0.2",
        "evaluation.batch_size=3",
        "objectives.positive={pairs: data, reward: {column: p}}",
        "sweep={grid: 3}",
    )
    assert experiment.training.beta == 0.2
    assert experiment.evaluation.batch_size == 3
    assert list(experiment.objectives) == ["positive", "concise"], "the order of the file stays"
    assert len(experiment.sweep.weights) == 3
    assert experiment.where("training.beta") == "`overrides`"
    assert experiment.where("training.learning_rate").endswith(":17")


def test_an_override_reaches_a_name_with_dots(tmp_path):
    experiment = read(tmp_path, GOOD.replace("concise", "v1.0"), "objectives.v1.0.scale=2")
    assert experiment.objectives["v1.0"].scale == 2


@pytest.mark.parametrize(
    ("override", "field", "words"),
    [
        ("training.beta", "training.beta", "has no value"),
        ("training.beta=", "training.beta", "has no value"),
        ("=3", "", "has no key"),
        ("training.beta=0,2", "training.beta", "write 0.2"),
        ("training.beta=[1", "", "not YAML"),
        ("training.beta=!!python/name:os.system", "training.beta", "not allowed"),
        ("training.bta=1", "training.bta", "did you mean `beta`?"),
        ("trainin.beta=1", "trainin", "did you mean `training`?"),
        ("data.path.x=1", "data.path.x", "`data.path` is no section, but 'rows.jsonl'"),
        ("training={beta: 1, beta: 2}", "training.beta", "is given twice"),
        ("evaluation.batch_size=0", "evaluation.batch_size", "at least 1"),
        ("sweep={grid: 0}", "sweep.grid", "from 1"),
        ("sweep={grid: 100000}", "sweep.grid", "from 1"),
        ("sweep={lattice: 0}", "sweep.lattice", "from 1"),
        ("sweep={lattice: 5000}", "sweep.lattice", "makes 5001 vectors"),
        ("sweep={}", "sweep", "exactly one of"),
        ("sweep={weights: []}", "sweep.weights", "is empty"),
    ],
)
def test_a_bad_override_is_named(tmp_path, capsys, override, field, words):
    file = write(tmp_path, GOOD)
    assert main(["sweep", str(file), "--set", override]) == 2
    printed = capsys.readouterr().err.splitlines()
    start = f"error: --set:{field}: " if field else "error: --set:"
    assert any(line.startswith(start) and words in line for line in printed), printed


# --- the sweep


def sweep_of(folder: Path, sweep: str, text: str = GOOD) -> list[dict[str, float]]:
    return read(folder, text, f"sweep={sweep}").sweep.weights


def test_a_grid_is_the_interior_grid(tmp_path):
    """Five cells of width 0.2, their middles."""
    assert [w["positive"] for w in sweep_of(tmp_path, "{grid: 5}")] == [0.9, 0.7, 0.5, 0.3, 0.1]


def test_two_objectives_with_pairs_alone_cannot_both_have_a_weight(tmp_path):
    """One of them would have to enter as a margin. At the end points neither has to."""
    pairs_only = GOOD.replace("reward: {column: words}", "pairs: shorter").replace(
        'reward: "package.module:function"', "unit: x"
    )
    for sweep in ("{grid: 2}", "{weights: [{positive: 0.5, concise: 0.5}]}"):
        [problem] = problems_of(write(tmp_path, pairs_only), f"sweep={sweep}")
        assert "positive and concise have pairs but no reward" in problem.problem
        assert "give all but one of them a reward" in problem.fix
    assert len(sweep_of(tmp_path, "{lattice: 1}", pairs_only)) == 2


def test_a_lattice_has_the_end_points(tmp_path):
    """All C(4 + 2, 2) = 15 vectors of three objectives."""
    three = GOOD.replace("training:\n", "  short:\n    reward: {column: tokens}\ntraining:\n")
    vectors = sweep_of(tmp_path, "{lattice: 4}", three)
    assert len(vectors) == math.comb(6, 2)
    assert {"positive": 0.0, "concise": 0.0, "short": 1.0} in vectors


def test_a_grid_needs_two_objectives(tmp_path):
    three = GOOD.replace("training:\n", "  short:\n    reward: {column: tokens}\ntraining:\n")
    [problem] = problems_of(write(tmp_path, three), "sweep={grid: 3}")
    assert problem.field == "sweep.grid"
    assert "use `lattice`" in problem.fix


def test_the_same_vector_twice_is_trained_once(tmp_path):
    given = "[{positive: 0.7, concise: 0.3}, {concise: 3e-1, positive: 7e-1}, {positive: 1}]"
    assert sweep_of(tmp_path, f"{{weights: {given}}}") == [
        {"positive": 0.7, "concise": 0.3},
        {"positive": 1.0, "concise": 0.0},
    ]


def test_normalize_accepts_any_sum(tmp_path):
    vectors = sweep_of(tmp_path, "{weights: [{positive: 3, concise: 1}], normalize: true}")
    assert vectors == [{"positive": 0.75, "concise": 0.25}]


def test_no_sweep_is_no_vectors_and_modpo_sweep_says_so(tmp_path, capsys):
    text = GOOD[: GOOD.index("sweep:")]
    assert read(tmp_path, text).sweep.weights == []
    assert main(["sweep", str(tmp_path / "experiment.yaml")]) == 2
    assert "sweep: there are no preference vectors; fix: add `sweep: {grid: 5}`" in capsys.readouterr().err


# --- and back


@pytest.mark.parametrize(
    "sweep", ["null", "{grid: 4}", "{lattice: 3}", "{weights: [{positive: 2, concise: 1}], normalize: true}"]
)
@pytest.mark.parametrize("lora", ["null", "{r: 4, target_modules: [q_proj, v_proj]}"])
def test_to_yaml_reads_back_to_the_same_experiment(tmp_path, sweep, lora):
    experiment = read(tmp_path, GOOD, f"sweep={sweep}", f"lora={lora}", "model.revision='1e5'", "seed=7")
    again = read_experiment(write(tmp_path, to_yaml(experiment)))
    assert again == experiment
    assert to_yaml(again) == to_yaml(experiment)


def test_to_yaml_writes_the_defaults_and_never_trust(tmp_path):
    experiment = read_experiment(write(tmp_path, GOOD), trust_remote_code=True)
    text = to_yaml(experiment)
    assert "gradient_accumulation_steps: 1" in text
    assert "output_dir: runs/experiment" in text
    assert "trust" not in text
    again = read_experiment(write(tmp_path, text), trust_remote_code=True)
    assert again == experiment


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=plain_data, unit=st.text())
@example(data={"a": 0, "7": ""}, unit="\x85")
def test_any_plain_data_survives_the_way_through_yaml(tmp_path, data, unit):
    """Text that looks like a number, a date, a truth or a tag stays text; numbers stay exact."""
    experiment = read(tmp_path, GOOD)
    experiment.training.arguments["x"] = data
    object.__setattr__(experiment.objectives["concise"], "unit", unit)
    assert read_experiment(write(tmp_path, to_yaml(experiment))) == experiment


# --- keys and sections


@pytest.mark.parametrize("section", reference.sections().values(), ids=lambda cls: cls.__name__)
def test_every_default_keeps_the_rules_of_its_key(section):
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(section)}
    shape = section(**{name: "given" if default is MISSING else default for name, default in defaults.items()})
    for name, rules in keys.rules(shape):
        for rule in rules:
            assert defaults[name] in (None, MISSING) or rule.accepts(defaults[name]), name


def test_an_experiment_is_resolved_once(tmp_path):
    """Until a stage has made something, what is trained is what was asked for."""
    experiment = read(tmp_path, GOOD)
    first = resolved(experiment)
    assert first.asked is experiment
    assert all(getattr(first, f.name) == getattr(experiment, f.name) for f in fields(experiment))
    made = replace(first, seed=experiment.seed + 1)
    assert resolved(made) is made
    assert resolved(made).asked is experiment
