"""Reads YAML nodes strictly into dataclasses: their annotations say what each key may be.

Every problem is collected with its file, line and dotted path, and reading goes on. It knows
nothing of experiments.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from yaml import MappingNode, Node, ScalarNode, SequenceNode

from modpo.base.errors import Problem
from modpo.experiment.yaml_nodes import (
    BOOL_TAG,
    MAPPING_TAG,
    NULL_TAG,
    NUMBER_TAGS,
    OVERRIDES,
    TEXT_TAG,
    is_integer,
    is_plain,
    is_tagged,
    line_of,
    place,
    seen,
    text_node,
)

BROKEN: Any = object()  # stands where a value would, if it has a problem

NUMBER = re.compile(r"[-+]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)([eE][-+]?\d+)?")
NOT_FINITE = re.compile(r"[-+]?\.?(nan|inf|infinity)", re.IGNORECASE)
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
TRUE = ("true", "yes", "on")

Section = TypeVar("Section")


class SectionReader:
    """Reads nodes into values of annotated types.

    Attributes:
        problems: what is wrong so far, in the order of the file.
        lines: dotted path -> line, from 1; 0 if the command line set it.
    """

    def __init__(self, source: str, *, refused: Mapping[str, str], shorthand: Mapping[type, str]) -> None:
        """`refused`: key -> what to do instead. `shorthand`: section -> the key that a text sets."""
        self.source = source
        self.refused = refused
        self.shorthand = shorthand
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}

    def report(self, path: str, problem: str, fix: str) -> Any:
        """Note a problem; returns BROKEN, to stand for the value."""
        self.problems.append(Problem(place(self.source, self.lines, path), path, problem, fix))
        return BROKEN

    def is_broken(self, path: str) -> bool:
        """Whether something at or below `path` has a problem."""
        return any(re.match(rf"{re.escape(path)}($|[.\[])", problem.field) for problem in self.problems)

    def section(self, node: Node, cls: type[Section], path: str = "", name: str | None = None) -> Section:
        """A mapping as a dataclass; keys left out take their defaults. `name` sets the field `name`.

        A required field with a problem holds BROKEN.
        """
        if cls in self.shorthand and isinstance(node, ScalarNode) and node.tag == TEXT_TAG:
            node = MappingNode(MAPPING_TAG, [(text_node(self.shorthand[cls], like=node), node)])
        kinds = get_type_hints(cls)
        values: dict[str, Any] = {} if name is None else {"name": name}
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        fields = {key: f for key, f in fields.items() if key not in values and key not in self.refused}
        entries = self._entries(node, path, "a section of keys")
        for key, child in (entries or {}).items():
            here = join(path, key)
            if key in fields:
                values[key] = self.read(child, kinds[key], here, fields[key].default)
            else:
                close = difflib.get_close_matches(key, fields, n=1)
                fix = f"did you mean `{close[0]}`?" if close else f"use one of: {', '.join(fields)}"
                self.report(here, "unknown key", fix)
        for key, field in fields.items():
            if key not in values and _is_required(field):
                values[key] = BROKEN
                if entries is not None:  # else the section itself has the problem
                    self.report(join(path, key), "is missing", f"add `{key}: ...`")
        return cls(**values)

    def read(
        self, node: Node, kind: Any, path: str, default: Any = dataclasses.MISSING, name: str | None = None
    ) -> Any:
        """A node as a value of the annotated type `kind`, or BROKEN."""
        if is_tagged(node):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!", 1)
            return self.report(path, f"the tag {tag} is not allowed", "write the plain value")
        if get_origin(kind) in (Union, types.UnionType):
            kind = self._member_for(node, get_args(kind))
        if kind is types.NoneType:
            return None
        if kind is Any:
            return self._anything(node, path)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return self.section(node, kind, path, name)
        if get_origin(kind) is dict:
            return self._mapping(node, get_args(kind)[1], path)
        if get_origin(kind) is list:
            return self._list(node, get_args(kind)[0], path)
        return self._scalar(node, kind, path, default)

    def _member_for(self, node: Node, members: tuple[Any, ...]) -> Any:
        """Which member of a union a node is meant to be, by its shape; the first one if it fits none."""
        if node.tag == NULL_TAG and types.NoneType in members:
            return types.NoneType
        kinds = [kind for kind in members if kind is not types.NoneType]
        if node.tag == TEXT_TAG and str in kinds:
            kinds = [kind for kind in kinds if kind is not bool]  # `auto` beside true and false
        for kind in kinds:
            is_mapping = dataclasses.is_dataclass(kind) or get_origin(kind) is dict
            is_list = get_origin(kind) is list
            if (
                (isinstance(node, MappingNode) and is_mapping)
                or (isinstance(node, SequenceNode) and is_list)
                or (isinstance(node, ScalarNode) and (kind in self.shorthand or not (is_mapping or is_list)))
            ):
                return kind
        return kinds[0]

    def _entries(self, node: Node, path: str, expected: str) -> dict[str, Node] | None:
        """The keys of a mapping, without those that have a problem of their own; None if it is no mapping."""
        if node.tag == NULL_TAG:  # a heading above nothing, or above comments only
            return {}
        if not isinstance(node, MappingNode):
            self._wrong_type(node, expected, path)
            return None
        entries: dict[str, Node] = {}
        previous = ""
        for key_node, child in node.value:
            is_text = isinstance(key_node, ScalarNode) and not is_tagged(key_node)
            key = key_node.value if is_text else "?"
            here = join(path, key)
            if key in entries:
                self._report_repetition(key_node, here)
                continue
            self.lines[here] = line_of(key_node)
            if not is_text:
                self.report(here, "this key is not plain text", "write `key: value`")
            elif key in self.refused:
                self.report(here, "is not allowed here", self.refused[key])
            elif (
                key.isdigit()
                and (child.tag, child.value) == (NULL_TAG, "")
                and previous
                and is_integer(entries[previous])
            ):
                comma = f"{entries[previous].value},{key}"  # {a: 0,7} is read as {a: 0, 7: null}
                self._report_comma(join(path, previous), comma)
            else:
                entries[key] = child
                previous = key
        return entries

    def _mapping(self, node: Node, kind: Any, path: str) -> Any:
        """A mapping as a dict. In a dict of dataclasses that have a field `name`, the key is the name."""
        entries = self._entries(node, path, "a mapping")
        if entries is None:
            return BROKEN
        named = dataclasses.is_dataclass(kind) and any(f.name == "name" for f in dataclasses.fields(kind))
        return {
            key: self.read(child, kind, join(path, key), name=key if named else None) for key, child in entries.items()
        }

    def _list(self, node: Node, kind: Any, path: str) -> Any:
        if not isinstance(node, SequenceNode):
            return self._wrong_type(node, "a list", path)
        self.lines |= {f"{path}[{i}]": line_of(child) for i, child in enumerate(node.value)}
        return [self.read(child, kind, f"{path}[{i}]") for i, child in enumerate(node.value)]

    def _anything(self, node: Node, path: str) -> Any:
        """Plain data, where the annotation allows all of it."""
        if isinstance(node, MappingNode):
            return self._mapping(node, Any, path)
        if isinstance(node, SequenceNode):
            return self._list(node, Any, path)
        if node.tag == NULL_TAG:
            return None
        if node.tag == BOOL_TAG:
            return node.value.lower() in TRUE
        # .inf and .nan are numbers; a plain word `nan` is text where text may stand
        is_infinite = node.tag in NUMBER_TAGS and NOT_FINITE.fullmatch(node.value)
        if is_plain(node) and (NUMBER.fullmatch(node.value) or is_infinite):
            return self._number(node, int if is_integer(node) else float, path)
        if node.tag in NUMBER_TAGS:  # 0x10, 1:30
            fix = "write a number in decimals, a text in quotes"
            return self.report(path, f"{node.value} can be read as a number or as text", fix)
        return node.value

    def _scalar(self, node: Node, kind: Any, path: str, default: Any) -> Any:
        if kind in (int, float):
            return self._number(node, kind, path, default)
        if kind is bool:
            if node.tag == BOOL_TAG:
                return node.value.lower() in TRUE
            return self._wrong_type(node, "true or false", path, default)
        if kind is not str:
            raise TypeError(f"{path} is annotated {kind}, which this reader does not know")
        if isinstance(node, ScalarNode) and node.tag not in (*NUMBER_TAGS, BOOL_TAG, NULL_TAG):
            return node.value
        return self._wrong_type(node, "text", path, default)

    def _number(self, node: Node, kind: type[int] | type[float], path: str, default: Any = dataclasses.MISSING) -> Any:
        expected = "a whole number" if kind is int else "a number"
        if is_plain(node) and NOT_FINITE.fullmatch(node.value):
            return self.report(path, f"{node.value} is not finite", f"give {expected}{_instance(default)}")
        if is_plain(node) and DECIMAL_COMMA.fullmatch(node.value):
            return self._report_comma(path, node.value)
        if not is_plain(node) or not NUMBER.fullmatch(node.value):
            return self._wrong_type(node, expected, path, default)
        value = float(node.value)
        if not math.isfinite(value):
            return self.report(path, "is too large a number", f"give {expected}{_instance(default)}")
        if kind is int and not value.is_integer():
            return self._wrong_type(node, expected, path, default)
        return value if kind is float else int(node.value) if is_integer(node) else int(value)

    def _wrong_type(self, node: Node, expected: str, path: str, default: Any = dataclasses.MISSING) -> Any:
        fix = f"give {expected}{_instance(default)}"
        if expected == "text" and isinstance(node, ScalarNode) and node.value:
            fix = f'if it is meant as text, put it in quotes: "{node.value}"'
        return self.report(path, f"expected {expected}, got {seen(node)}", fix)

    def _report_comma(self, path: str, text: str) -> Any:
        return self.report(path, f"{text!r} has a decimal comma", f"write {text.replace(',', '.')}")

    def _report_repetition(self, key_node: Node, path: str) -> None:
        line, first = line_of(key_node), self.lines[path]
        where = f"{self.source}:{line}" if line else OVERRIDES
        self.problems.append(Problem(where, path, f"is given twice, first in line {first}", "keep one"))


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def join(path: str, key: str) -> str:
    """The dotted path of a key in the section at `path`."""
    return f"{path}.{key}" if path else key


def _instance(default: Any) -> str:
    if default is dataclasses.MISSING or default is None:
        return ""
    return f", for instance {str(default).lower() if isinstance(default, bool) else default}"
