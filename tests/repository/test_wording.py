"""The library speaks of fields and stages; the command line alone speaks of options and commands."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import modpo
from modpo import cli
from modpo.base.errors import EnvironmentFault, InputError, Problem
from modpo.cli.wording import TYPED, typed

ROOT = Path(modpo.__file__).parent
LIBRARY = [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] not in ("cli", "__main__.py")]


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    actions = cli._parser()._actions
    return next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))


COMMANDS = parsers()
OPTIONS = {option for parser in COMMANDS.values() for action in parser._actions for option in action.option_strings}
TYPED_WORDS = re.compile(rf"`modpo |\bmodpo ({'|'.join(COMMANDS)})\b|(?<![\w-])({'|'.join(OPTIONS)})\b")


def spoken(source: str) -> Iterator[str]:
    """The texts of a module without its docstrings, also those below fields; of an f-string its fixed parts."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_library_names_no_option_and_no_command(path: Path) -> None:
    assert [text for text in spoken(path.read_text("utf-8")) if TYPED_WORDS.search(text)] == []


@pytest.mark.parametrize(
    "source",
    ['fix = "give --output"', 'f"{x}: run `modpo score` again"', 'option = "--set"', 'say(f"now modpo chat {x}")'],
)
def test_an_option_or_command_is_found(source: str) -> None:
    assert any(TYPED_WORDS.search(text) for text in spoken(source))


@pytest.mark.parametrize("source", ['"""Run `modpo score`."""', 'flags = ["--quiet"]', 'f"modpo {version}"'])
def test_other_texts_are_let_be(source: str) -> None:
    assert not any(TYPED_WORDS.search(text) for text in spoken(source))


def test_what_is_translated_is_what_the_library_says() -> None:
    said = "\n".join(text for path in LIBRARY for text in spoken(path.read_text("utf-8")))
    for words in TYPED:
        if words != "`output`":  # require_writable puts a field's name between backticks
            assert words in said or words.strip("`") in said.split("\n"), words
        assert TYPED_WORDS.search(TYPED[words])


def test_an_error_is_said_in_options_and_commands() -> None:
    problem = Problem("`overrides`", "training.beta", "is -1", "give a number above 0")
    front = Problem("front.json", "", "no such file", "name the folder of an evaluated sweep, or measure it first")
    assert typed(InputError([problem, front])) == [
        "--set:training.beta: is -1; fix: give a number above 0",
        "front.json: no such file; fix: name the folder of an evaluated sweep, or run `modpo evaluate` first",
    ]
    assert typed(EnvironmentFault("x: is no folder; fix: choose another `output`")) == [
        "x: is no folder; fix: choose another `--output`"
    ]
