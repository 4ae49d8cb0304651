"""What the package's source may not ask for, found in its syntax tree."""

from __future__ import annotations

import ast
import re

MODULES = ("pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pty")
FORBIDDEN = re.compile(
    r"eval|exec|compile|__import__|os\.(system|popen|exec\w+|spawn\w+|posix_spawnp?|startfile)"
    r"|subprocess\.(getoutput|getstatusoutput)|yaml\.(load|full_load|unsafe_load)(_all)?"
    r"|tempfile\.mktemp|runpy\.\w+|(\w+\.)*extractall"
)
# Where a module is imported by its name: the package's own names, methods, a user’s function, an optional library.
IMPORTERS = ("__init__.py", "methods/run.py", "base/user_function.py", "forward/vllm.py")
# Where templates are rendered, the report's own; and how: what they show is escaped, an unknown name is an error.
TEMPLATES = "report/page.py"
STRICT = {"autoescape=True", "undefined=jinja2.StrictUndefined"}
SAFE = {"shell": ["False"], "allow_pickle": ["False"], "Loader": ["yaml.SafeLoader"]}


def dangers(source: str, path: str = "x.py") -> list[str]:
    """What a module does that no module of the package may."""
    return [danger for node in ast.walk(ast.parse(source)) for danger in _of(node, path)]


def _of(node: ast.AST, path: str) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names if _is_pickle(alias.name)]
        case ast.ImportFrom():
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            return [name for name in names if _is_pickle(name) or _is_forbidden(name, path)]
        case ast.Call() if _is_forbidden(ast.unparse(node.func), path, node.keywords):
            return [ast.unparse(node)]
        case ast.keyword() if _is_unsafe(node):
            return [ast.unparse(node)]
    return []


def _is_pickle(name: str) -> bool:
    return name.partition(".")[0] in MODULES


def _is_forbidden(name: str, path: str, keywords: list[ast.keyword] | None = None) -> bool:
    """Whether a function may not be called, or be imported from its module, which would hide the call."""
    given = {ast.unparse(keyword) for keyword in keywords or []}
    if name == "torch.load":
        return "weights_only=True" not in given
    if name == "jinja2.Environment":
        return path != TEMPLATES or not given >= STRICT
    if name == "importlib.import_module":
        return path not in IMPORTERS
    return FORBIDDEN.fullmatch(name) is not None


def _is_unsafe(keyword: ast.keyword) -> bool:
    value = ast.unparse(keyword.value)
    if keyword.arg == "trust_remote_code":  # passed on from the command line, never set
        return value == "True"
    return keyword.arg in SAFE and value not in SAFE[keyword.arg]
