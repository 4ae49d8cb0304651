"""Writes the tables of docs/experiment.md from the fields of the sections: `make reference`.

A field's default stands in its row, and the text below the field is the meaning. The rest of the file is left alone.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, get_args, get_type_hints

from modpo.experiment.sections import ExperimentFile

HEAD = "| key | default | meaning |\n| --- | --- | --- |\n"
IN_WORDS = {  # defaults that depend on the file's name or the environment
    "output_dir": "`runs/` and the file's name",
    "cache_dir": "`$MODPO_CACHE`, else `~/.cache/modpo`",
}


def sections() -> dict[str, Any]:
    """The dataclass of each section by its heading, which is the first key that holds it."""
    found: list[tuple[str, Any]] = [("The file itself", ExperimentFile)]
    for _, cls in found:  # what is found in a section is looked through in its turn
        for name, kind in get_type_hints(cls).items():
            known = [other for _, other in found]
            found += [(name, kind) for kind in _inside(kind) if dataclasses.is_dataclass(kind) and kind not in known]
    return dict(found)


def _inside(kind: Any) -> list[Any]:
    """The types that an annotation names."""
    return [inner for argument in get_args(kind) for inner in _inside(argument)] or [kind]


def with_tables(text: str) -> str:
    """The text of docs/experiment.md, each table of keys written anew.

    Raises:
        ValueError: a section has no heading, or no table below it.
    """
    for heading, cls in sections().items():
        table = re.compile(rf"(^#+ {re.escape(heading)}\n(?:(?!#).*\n)*?{re.escape(HEAD)})(?:\|.*\n)*", re.M)
        parts = table.split(text)
        if len(parts) != 3:
            raise ValueError(f"below the heading {heading!r} there is no table of keys; fix: write its head, {HEAD!r}")
        before, head, after = parts
        text = before + head + "".join(_rows(cls)) + after
    return text


def _rows(cls: Any) -> list[str]:
    meanings = _meanings(cls)
    keys = [field for field in dataclasses.fields(cls) if field.name in meanings]
    return [f"| `{key.name}` | {_default(key)} | {meanings[key.name]} |\n" for key in keys]


def _default(key: dataclasses.Field[Any]) -> str:
    if key.name in IN_WORDS:
        return IN_WORDS[key.name]
    if key.default is dataclasses.MISSING and key.default_factory is dataclasses.MISSING:
        return "required"
    default = key.default if key.default_factory is dataclasses.MISSING else key.default_factory()
    if dataclasses.is_dataclass(default):
        return f"see [{key.name}](#{key.name})"
    return f"`{default}`" if default and isinstance(default, str) else f"`{json.dumps(default)}`"


def _meanings(cls: type) -> dict[str, str]:
    """The text below each field, those of the bases too."""
    bases = [base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    meanings = {}
    for base in bases:
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                meanings[ast.unparse(field.target)] = " ".join(ast.literal_eval(below.value).split())
    return meanings


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(with_tables(document.read_text("utf-8")), "utf-8")
