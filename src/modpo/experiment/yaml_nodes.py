"""YAML as a tree of nodes, each with its place in the file: composed, overridden, looked at.

Nodes are never turned into objects by YAML itself, so nothing in a file can run code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from modpo.base.errors import InputError, Problem

OVERRIDES = "`overrides`"  # where a value stands that is set over the file's
DEEPEST = 50

NULL_TAG = "tag:yaml.org,2002:null"
BOOL_TAG = "tag:yaml.org,2002:bool"
TEXT_TAG = "tag:yaml.org,2002:str"
MAPPING_TAG = "tag:yaml.org,2002:map"
LIST_TAG = "tag:yaml.org,2002:seq"
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

_RESOLVER = yaml.SafeLoader("")


def compose(text: str, source: str) -> Node | None:
    """The one document in `text` as a tree of nodes; None if it is empty.

    Raises:
        InputError: no YAML, several documents, aliases, or nesting deeper than DEEPEST.
    """
    try:
        _refuse_aliases(text, source)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        trouble = error.problem or error.context or "cannot be read"
        raise InputError(Problem(where, "", f"not YAML: {trouble}", _syntax_fix(trouble))) from None
    except yaml.YAMLError as error:
        trouble = " ".join(str(error).split())
        raise InputError(Problem(source, "", f"not YAML: {trouble}", "save it as plain UTF-8 text")) from None


def _syntax_fix(trouble: str) -> str:
    if r"\t" in trouble:
        return "indent with spaces, not tabs"
    if "single document" in trouble or "another document" in trouble:
        return "keep one document, without `---` in between"
    return "write `key: value`, indented with spaces, and text with `: ` or ` #` in quotes"


def _refuse_aliases(text: str, source: str) -> None:
    """Aliases can make a tree endless or exponentially large; deep nesting exhausts the stack."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        where = f"{source}:{event.start_mark.line + 1}" if event.start_mark else source
        if isinstance(event, yaml.AliasEvent):
            raise InputError(Problem(where, "", f"*{event.anchor} is an alias", "write the value out"))
        if depth > DEEPEST:
            raise InputError(Problem(where, "", f"nested deeper than {DEEPEST} levels", "nest less"))


def override(root: MappingNode, assignment: str) -> None:
    """Set one value in the tree, from `training.beta=0.2`; sections on the way are made if they are missing.

    Raises:
        InputError: not KEY=VALUE, a VALUE that is no YAML, a path through something that is no section.
    """
    path, equals, text = assignment.partition("=")
    path = path.strip()
    value = compose(text, OVERRIDES) if equals else None
    if not path or value is None:
        lacking = "value" if path else "key"
        fix = "write KEY=VALUE, for instance training.beta=0.2, or KEY=null for nothing"
        raise InputError(Problem(OVERRIDES, path, f"{assignment!r} has no {lacking}", fix))
    _unmark(value)
    node, rest = root, path
    while (key := _next_key(node, rest)) != rest:
        rest = rest[len(key) + 1 :]
        child = dict((k.value, v) for k, v in node.value if isinstance(k, ScalarNode)).get(key)
        if child is None or child.tag == NULL_TAG:
            child = MappingNode(MAPPING_TAG, [])
            _assign(node, key, child)
        if not isinstance(child, MappingNode):
            whole = path[: -len(rest) - 1]
            fix = f"set the whole of it: {whole}={{{rest}: ...}}"
            raise InputError(Problem(OVERRIDES, path, f"`{whole}` is no section, but {seen(child)}", fix))
        node = child
    _assign(node, rest, value)


def _next_key(node: MappingNode, path: str) -> str:
    """The first key of a dotted path. Keys may hold dots themselves: the longest that fits is meant."""
    keys = [k.value for k, _ in node.value if isinstance(k, ScalarNode)]
    fitting = [key for key in keys if path == key or path.startswith(f"{key}.")]
    return max(fitting, key=len, default=path.partition(".")[0])


def _assign(node: MappingNode, key: str, value: Node) -> None:
    """Set a key where it stands, for the order of the objectives counts; a new one at the end."""
    new = (text_node(key), value)
    replaced = [new if k.value == key else (k, v) for k, v in node.value]
    node.value = replaced if new in replaced else [*node.value, new]


def _unmark(node: Node) -> None:
    """Take the position away from a value of the command line: it has no line in the file."""
    node.start_mark = None
    children = node.value if isinstance(node, SequenceNode) else []
    if isinstance(node, MappingNode):
        children = [child for pair in node.value for child in pair]
    for child in children:
        _unmark(child)


def text_node(text: str, like: Node | None = None) -> ScalarNode:
    """A quoted text, in the place of another node or of the command line."""
    return ScalarNode(TEXT_TAG, text, like.start_mark if like else None, None, style='"')


def line_of(node: Node) -> int:
    """Line in the file, from 1; 0 for what the command line set."""
    return node.start_mark.line + 1 if node.start_mark else 0


def place(source: str, lines: Mapping[str, int], path: str) -> str:
    """`file.yaml:LINE` of a dotted path, or of the section around it; OVERRIDES for what was set over the file."""
    while path and path not in lines:
        item = re.fullmatch(r"(.*)\[\d+\]", path)
        path = item[1] if item else path.rpartition(".")[0]
    if path not in lines:
        return source
    return f"{source}:{lines[path]}" if lines[path] else OVERRIDES


def is_tagged(node: Node) -> bool:
    """Whether the file tags a node (!!python/..., !mine, !!str 5) as something other than it looks."""
    if isinstance(node, MappingNode):
        return node.tag != MAPPING_TAG
    if isinstance(node, SequenceNode):
        return node.tag != LIST_TAG
    if isinstance(node, ScalarNode) and node.style is None:
        return node.tag != _RESOLVER.resolve(ScalarNode, node.value, (True, False))
    return node.tag != TEXT_TAG


def is_plain(node: Node) -> bool:
    """A scalar without quotes that may be a number: YAML 1.1 takes 1e-5 for text."""
    return isinstance(node, ScalarNode) and node.style is None and node.tag in (*NUMBER_TAGS, TEXT_TAG)


def is_integer(node: Node) -> bool:
    """A plain whole number in decimals."""
    return is_plain(node) and re.fullmatch(r"[-+]?\d+(_\d+)*", node.value) is not None


def seen(node: Node) -> str:
    """A node as an error message shows it."""
    if not isinstance(node, ScalarNode):
        return "a list" if isinstance(node, SequenceNode) else "a mapping"
    if node.tag == NULL_TAG:
        return "nothing"
    return repr(node.value) if node.tag == TEXT_TAG else node.value
