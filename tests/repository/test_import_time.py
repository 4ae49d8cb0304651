"""`import modpo`, `modpo --help` and reading an experiment load nothing that takes seconds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import modpo

HEAVY = {
    *("torch", "transformers", "trl", "peft", "datasets", "accelerate", "pyarrow", "numpy", "scipy"),
    *("matplotlib", "plotly", "moocore"),
}

EXPERIMENT = """\
model: {model_name_or_path: m}
data: {path: rows.jsonl}
objectives: {a: {pairs: data}}
"""


def loaded_after(code: str, *arguments: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after running `code`."""
    report = f"\nimport sys; print('LOADED', *({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code + report, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_probe_sees_what_is_loaded():
    assert loaded_after("import numpy") == {"numpy"}


def test_import_modpo_loads_nothing_heavy():
    assert loaded_after("import modpo; dir(modpo)") == set()


def test_reading_an_experiment_loads_nothing_heavy(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT)
    code = "import sys, modpo; modpo.read_experiment(sys.argv[1])"
    assert loaded_after(code, str(file)) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["score", "no-such-file.yaml"]])
def test_help_and_bad_input_load_nothing_heavy(arguments):
    code = f"""
from modpo.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
"""
    assert loaded_after(code) == set()


def test_the_public_names_are_spelled_out_and_stand_where_they_are_said_to():
    """Read from the source, so that none of them has to be imported."""
    assert {*modpo._HOMES, "__version__"} == set(modpo.__all__)
    for name, home in modpo._HOMES.items():
        tree = ast.parse(Path(modpo.__file__).parent.joinpath(*home.split(".")[1:]).with_suffix(".py").read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        defined |= {ast.unparse(target) for n in tree.body if isinstance(n, ast.Assign) for target in n.targets}
        assert name in defined, f"{home} does not define {name}"


def test_a_public_name_is_the_one_of_its_module():
    from modpo.training.loss import modpo_loss

    assert modpo.modpo_loss is modpo_loss
    assert "modpo_loss" in dir(modpo)
    with pytest.raises(AttributeError, match="no attribute 'modpo_lss'"):
        modpo.modpo_lss  # noqa: B018


def test_type_checkers_are_told_the_same_names():
    tree = ast.parse(Path(modpo.__file__).read_text())
    told = {
        (alias.name, node.module)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == set(modpo._HOMES.items())
