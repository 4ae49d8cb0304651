"""The command line: what it lists, how arguments reach a stage, how trouble leaves: one line, an exit code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest

from modpo import cli
from modpo.base.errors import EnvironmentFault, InputError, IntegrityError, NumericError, PartialFailure, Problem
from modpo.cli import main
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import resolved

EXPERIMENT = """\
model: {model_name_or_path: some/model, dtype: float32}
data: {path: rows.jsonl}
objectives:
  positive: {pairs: data}
  concise: {reward: {column: words}, maximize: false}
sweep: {grid: 2}
output_dir: OUT
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT.replace("OUT", str(tmp_path / "out")))
    return path


class Stages:
    """Stands where the stages are, which train for minutes: writes down what the command line asks of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple] = []
        self.failed: list[str] = []
        self.replace(monkeypatch, "modpo.methods.sweep", "run_sweep", "train_point", "train_continuous")
        self.replace(monkeypatch, "modpo.evaluation.evaluate", "evaluate_sweep", "require_measurable")
        self.replace(monkeypatch, "modpo.report", "write_report")
        self.replace(monkeypatch, "modpo.scored.of_experiment", "score_experiment")
        self.replace(monkeypatch, "modpo.inspection.facts", "inspect_experiment")
        self.replace(monkeypatch, "modpo.quickstart", "run_quickstart")

    def replace(self, monkeypatch: pytest.MonkeyPatch, module: str, *functions: str) -> None:
        stand_in = types.ModuleType(module)
        for name in functions:
            setattr(stand_in, name, self.recorder(name))
        monkeypatch.setitem(sys.modules, module, stand_in)

    def recorder(self, name: str):
        def call(*args, **kwargs):
            self.calls.append((name, *args, *kwargs.items()))
            return self.failed

        return call

    @property
    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def stages(monkeypatch) -> Stages:
    preflight = types.ModuleType("modpo.pipeline.preflight")
    for name in ("check_experiment", "check_training"):
        setattr(preflight, name, lambda *_: None)
    monkeypatch.setitem(sys.modules, "modpo.pipeline.preflight", preflight)
    return Stages(monkeypatch)


# --- help


def test_help_lists_every_subcommand_in_one_line_each(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    shown = {line[0]: line[1] for line in lines if len(line) == 2}
    for name, module in cli.SUBCOMMANDS.items():
        assert shown[name] == module.HELP


@pytest.mark.parametrize("name", cli.SUBCOMMANDS)
def test_each_subcommand_has_help(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: modpo {name}")
    assert "--debug" in printed


def test_version(capsys):
    import modpo

    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"modpo {modpo.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["score"], "the following arguments are required: EXPERIMENT"),
        (["train", "x.yaml"], "one of the arguments --weights --continuous is required"),
        (["train", "x.yaml", "--weights", "a=1", "--continuous"], "not allowed with argument --weights"),
        (["sweep", "x.yaml", "--fast"], "unrecognized arguments: --fast"),
        (["score", "x.yaml", "--deb"], "unrecognized arguments: --deb"),
        (["report"], "required: FOLDER"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(capsys, arguments, words):
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: modpo")
    assert words in printed
    assert printed.count("\n") == 1
    assert "--help`" in printed


def test_no_command_shows_the_help_and_exits_2(capsys):
    assert main([]) == 2
    assert "quickstart" in capsys.readouterr().err


# --- what reaches the stages


@pytest.mark.parametrize(
    ("command", "function"),
    [("score", "score_experiment"), ("inspect", "inspect_experiment"), ("evaluate", "evaluate_sweep")],
)
def test_an_experiment_reaches_its_stage(file, stages, command, function):
    assert main([command, str(file), "--set", "training.beta=0.3", "--set", "seed=4", "--trust-remote-code"]) == 0
    expected = read_experiment(file, ["training.beta=0.3", "seed=4"], trust_remote_code=True)
    assert stages.calls == [(function, expected if command == "inspect" else resolved(expected))]
    assert expected.training.beta == 0.3
    assert expected.model.trust_remote_code is True


def test_sweep_trains_measures_and_draws(file, stages):
    assert main(["sweep", str(file)]) == 0
    experiment = read_experiment(file)
    assert stages.calls == [
        ("require_measurable", experiment),
        ("run_sweep", resolved(experiment)),
        ("evaluate_sweep", resolved(experiment)),
        ("write_report", experiment.output_dir),
    ]


def test_sweep_without_evaluation(file, stages):
    assert main(["sweep", str(file), "--no-evaluate"]) == 0
    assert stages.names == ["run_sweep"]


def test_failed_points_are_named_after_the_others_are_measured(file, stages, capsys):
    stages.failed = ["positive0.25-concise0.75"]
    assert main(["sweep", str(file)]) == 5
    assert stages.names == ["require_measurable", "run_sweep", "evaluate_sweep", "write_report"]
    printed = capsys.readouterr().err
    assert "1 of 2 points failed: positive0.25-concise0.75; fix: " in printed


def test_nothing_is_measured_when_every_point_failed(file, stages):
    stages.failed = ["a", "b"]
    assert main(["sweep", str(file)]) == 5
    assert stages.names == ["require_measurable", "run_sweep"]


def test_train_passes_the_weights_and_the_folder(file, stages, tmp_path):
    experiment = read_experiment(file)
    weights = {"positive": 0.7, "concise": 0.3}
    assert main(["train", str(file), "--weights", "concise=3e-1, positive=0.7", "--output", str(tmp_path / "p")]) == 0
    assert main(["train", str(file), "--weights", "positive=1"]) == 0
    assert stages.calls == [
        ("train_point", resolved(experiment), weights, tmp_path / "p"),
        (
            "train_point",
            resolved(experiment),
            {"positive": 1.0, "concise": 0.0},
            None,
        ),  # its place in the sweep's folder
    ]


def test_train_continuous_passes_the_mode_and_the_folder(file, stages, tmp_path):
    experiment = read_experiment(file, ["sweep.mode=continuous"])
    assert main(["train", str(file), "--continuous", "--output", str(tmp_path / "p")]) == 0
    assert main(["train", str(file), "--continuous"]) == 0
    asked = resolved(experiment)
    assert stages.calls == [("train_continuous", asked, tmp_path / "p"), ("train_continuous", asked, None)]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("lora=null", "lora: is null; fix: a continuous policy is one adapter per objective: give its fields"),
        ("sweep={grid: 2, method: soups}", "sweep.method: is soups, and a continuous policy is MODPO's; fix: use"),
        ("objectives.concise={pairs: data}", "objectives: positive and concise have pairs but no reward"),
        ("lora.modules_to_save=[lm_head]", "lora.modules_to_save: does not go with `continuous`; fix: leave it out"),
    ],
)
def test_what_keeps_a_continuous_policy_from_training(file, stages, capsys, override, line):
    assert (
        main(["train", str(file), "--continuous", "--set", "sweep={weights: [{positive: 1}]}", "--set", override]) == 2
    )
    assert line in capsys.readouterr().err
    assert stages.calls == []


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("0.7,0.3", "weights", "'0.7' is not NAME=WEIGHT; fix: write positive=0.5,concise=0.5"),
        ("", "weights", "is not NAME=WEIGHT"),
        ("=1", "weights", "is not NAME=WEIGHT"),
        ("positive=0.7,concise", "weights", "'concise' is not NAME=WEIGHT"),
        ("positive=0.7,concise=0.2", "weights", "sum to 0.9"),
        ("positive=1.3,concise=-0.3", "weights.concise", "negative"),
        ("positive=nan,concise=0.3", "weights.positive", "not finite"),
        ("positive=0.7,consise=0.3", "weights.consise", "use one of: positive, concise"),
        ("positive=0.7,positive=0.3", "weights.positive", "given twice"),
        ("positive=0,7,concise=0,3", "weights.positive", "'0,7' has a decimal comma; fix: write 0.7"),
        ("positive=much,concise=0.3", "weights.positive", "'much' is not a number"),
    ],
)
def test_bad_weights_are_named(file, stages, capsys, text, field, words):
    assert main(["train", str(file), "--weights", text]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert any(line.startswith(f"error: --weights:{field}: ") and words in line for line in printed), printed
    assert stages.calls == []


def test_report_and_quickstart_take_their_folder(stages, tmp_path):
    assert main(["report", str(tmp_path)]) == 0
    assert main(["quickstart", "--fast", "--output", str(tmp_path)]) == 0
    for options in ([], ["--separate"], ["--fast"], ["--separate", "--fast"]):  # a folder belongs to one experiment
        assert main(["quickstart", *options]) == 0
    full, fast = (("fast", False), ("minutes", None)), (("fast", True), ("minutes", None))
    assert stages.calls == [
        ("write_report", tmp_path),
        ("run_quickstart", tmp_path, ("separate", False), *fast),
        ("run_quickstart", Path("runs/quickstart"), ("separate", False), *full),
        ("run_quickstart", Path("runs/quickstart-separate"), ("separate", True), *full),
        ("run_quickstart", Path("runs/quickstart-fast"), ("separate", False), *fast),
        ("run_quickstart", Path("runs/quickstart-separate-fast"), ("separate", True), *fast),
    ]


# --- trouble


TROUBLE = [
    (InputError(Problem("a.jsonl:3", "chosen", "is empty", "drop it")), 2, "a.jsonl:3:chosen: is empty; fix: drop it"),
    (EnvironmentFault("out: is busy; fix: wait"), 3, "out: is busy; fix: wait"),
    (IntegrityError("out: was changed; fix: start anew"), 4, "out: was changed; fix: start anew"),
    (PartialFailure("out: a failed; fix: again"), 5, "out: a failed; fix: again"),
    (NumericError("step 3: the loss is NaN; fix: lower it"), 6, "step 3: the loss is NaN; fix: lower it"),
    (KeyboardInterrupt(), 130, "interrupted; fix: run the same command again to go on"),
    (OSError(errno.ENOSPC, "No space", "runs/x"), 3, "runs/x: no space is left on this disk; fix: free some"),
    (OSError(errno.EROFS, "Read-only", "runs/x"), 3, "runs/x: this file system is read-only; fix: "),
    (PermissionError(errno.EACCES, "Denied", "runs/x"), 3, "runs/x: permission denied; fix: "),
    (OSError(errno.EIO, "I/O error", "runs/x"), 3, "runs/x: the disk failed to read or write; fix: check it"),
    (OSError(errno.EBADF, "Bad file", "runs/x"), 1, "OSError: [Errno 9] Bad file: 'runs/x'; fix: run again"),
    (MemoryError(), 3, "out of memory: MemoryError; fix: lower `training.per_device_train_batch_size`"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 3, "out of memory: DefaultCPUAllocator"),
    (RuntimeError("first line\nsecond line"), 1, "RuntimeError: first line; fix: run again with --debug and report it"),
    (ValueError("\x1b[31mred"), 1, "ValueError: \\x1b[31mred; fix: "),
    (BrokenPipeError(errno.EPIPE, "a worker's pipe"), 1, "BrokenPipeError: "),
]  # fmt: skip


@pytest.mark.parametrize(("error", "code", "words"), TROUBLE, ids=[f"{type(r[0]).__name__}-{r[1]}" for r in TROUBLE])
def test_trouble_is_one_line_and_an_exit_code(monkeypatch, capsys, error, code, words):
    def run(args):
        raise error

    monkeypatch.setattr(cli.report, "run", run)
    assert main(["report", "x"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {words}")
    assert printed.count("\n") == 1
    for asked in (["report", "x", "--debug"], ["--debug", "report", "x"]):
        assert main(asked) == code
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to mmap 25 bytes from file <x>: Cannot allocate memory (12)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_lower(monkeypatch, capsys, error):
    def run(args):
        raise error

    monkeypatch.setattr(cli.report, "run", run)
    assert main(["report", "x"]) == 3
    assert "; fix: lower `training.per_device_train_batch_size`" in capsys.readouterr().err


def test_what_peft_says_of_every_model_of_a_kind_is_not_repeated(monkeypatch, capsys):
    harmless = [
        "The following rank_pattern keys did not match any targeted module and were ignored: ['.*gate_up_proj'].",
        "fan_in_fan_out is set to False but the target module is `Conv1D`. Setting fan_in_fan_out to True.",
        "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter.",
        "Input and output embeddings are no longer tied after merging.",
    ]

    def run(args):
        for text in [*harmless, "Something else went wrong."]:
            warnings.warn_explicit(text, UserWarning, "peft/tuners/lora/layer.py", 1, module="peft.tuners.lora.layer")
        return 0

    monkeypatch.setattr(cli.report, "run", run)
    with warnings.catch_warnings():
        assert main(["report", "x"]) == 0
    printed = capsys.readouterr().err
    assert "Something else went wrong." in printed
    assert not [text for text in harmless if text in printed]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_was_closed_at_the_start(tmp_path, name):
    """What is said goes nowhere, and not into a file that was opened in its place."""
    number = {"stdout": 1, "stderr": 2}[name]
    code = f"import os, sys; os.close({number}); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", code, sys.executable, "-m", "modpo", "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert ("no such file" in done.stderr) == (name == "stdout")
    assert done.stdout == ""


def test_an_accelerators_memory_error_is_one_too(monkeypatch, capsys):
    import torch

    def run(args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(cli.report, "run", run)
    assert main(["report", "x"]) == 3
    printed = capsys.readouterr().err
    assert printed.startswith("error: out of memory: CUDA out of memory. Tried to allocate 2 GiB.; fix: lower")


def run_modpo(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "modpo", *arguments], timeout=60, **options)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(unbuffered, monkeypatch):
    """`modpo ... | head -1`: quiet, whether Python buffers its output or not."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    code = """
import sys
from modpo import cli

def run(args):
    while True:
        print("line")

cli.report.run = run
sys.exit(cli.main(["report", "x"]))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert errors == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_standard_output():
    with open("/dev/full", "w") as full:
        done = run_modpo("--version", stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("error: disk: no space is left on this disk; fix: ")
    assert done.stderr.count("\n") == 1


def test_the_module_runs_as_the_command_does(tmp_path):
    done = run_modpo("score", str(tmp_path / "none.yaml"), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/none.yaml: no such file; fix: ")


def test_telemetry_is_off_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    main([])
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
