"""Test modules stand alone: what they share is in tests/kit.py, or in a file beside them that holds no tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def imported_tests(source: str) -> Iterator[str]:
    """The test modules that a source imports, by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if any(part.startswith("test_") for part in name.split(".")))


@pytest.mark.parametrize(
    "source", ["import tests.a.test_b", "from tests.a.test_b import c", "from .test_b import c", "from . import test_b"]
)
def test_the_check_sees_an_import(source: str) -> None:
    assert len(list(imported_tests(source))) == 1


def test_no_test_module_is_imported() -> None:
    found = {
        str(path.relative_to(TESTS)): names
        for path in sorted(TESTS.rglob("*.py"))
        if (names := list(imported_tests(path.read_text("utf-8"))))
    }
    assert found == {}
