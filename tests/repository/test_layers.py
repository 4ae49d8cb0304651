"""The packages stand in one order, and imports go down only: a file uses its own package and those that stand below.

An import counts wherever it stands: at the top of a file, in a function, or for a type checker alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import modpo
from tests.repository.layers import LAYERS

ROOT = Path(modpo.__file__).parent


def module_name(path: Path, root: Path = ROOT) -> str:
    """src/modpo/training/loss.py -> modpo.training.loss; a package's __init__.py is the package."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(("modpo", *parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(source: str, modules: set[str]) -> Iterator[str]:
    """The modules of modpo that a source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "modpo")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test can read them"
            if (node.module or "").split(".")[0] == "modpo":
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name if name in modules else str(node.module) for name in names)


def upward(module: str, used: str) -> bool:
    """Whether one module stands below another that it uses. The package itself, `modpo`, stands above all."""
    place, other = (name.split(".")[1] if "." in name else "" for name in (module, used))
    if place not in LAYERS:  # `modpo` and `modpo.__main__`
        return False
    return other not in LAYERS or LAYERS.index(other) > LAYERS.index(place)


GRAPH = {name: set(imported(path.read_text("utf-8"), set(MODULES))) for name, path in MODULES.items()}


def test_every_package_has_its_place() -> None:
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()} == set(LAYERS)
    assert {path.name for path in ROOT.iterdir() if path.is_file()} == {"__init__.py", "__main__.py", "py.typed"}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_down(layer: str) -> None:
    inside = {name for name in MODULES if name.split(".")[1:2] == [layer]}
    assert {f"{name} -> {used}" for name in inside for used in GRAPH[name] if upward(name, used)} == set()


def test_there_is_no_circle() -> None:
    """Not inside a package either."""
    try:
        list(TopologicalSorter({name: used - {name} for name, used in GRAPH.items()}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    "source",
    [
        "from modpo.training.loss import modpo_loss",
        "import modpo.training.loss",
        "from modpo.training import loss",
        "def f():\n    from modpo.training.loss import modpo_loss",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from modpo.training.loss import modpo_loss",
        "import modpo",
        "from modpo import modpo_loss",
    ],
)
def test_an_upward_import_is_found_wherever_it_stands(source: str) -> None:
    assert any(upward("modpo.data.rows", used) for used in imported(source, set(MODULES)))


def test_a_downward_import_is_let_be() -> None:
    used = imported("from modpo.base import files\nfrom modpo.data.rows import Rows", set(MODULES))
    assert not any(upward("modpo.data.groups", name) for name in used)
