"""A Python function that a user names as `package.module:function`: found, and identified by its source."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import operator
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from modpo.base.errors import InputError, Problem

REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class Refusal(Exception):
    """Why a function cannot be used: (problem, fix)."""


@contextmanager
def refused_at(where: str, field: str) -> Iterator[None]:
    """Turn a Refusal into an InputError that names the place, such as the experiment's line and key."""
    try:
        yield
    except Refusal as refusal:
        raise InputError(Problem(where, field, *refusal.args)) from refusal.__cause__


def depends_on(*distributions: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a function whose results change with the version of other installed packages.

    Their versions join the function's identity, and so the cache key.
    """

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.distributions = distributions  # type: ignore[attr-defined]
        return function

    return mark


def import_function(reference: str, *, example: str) -> tuple[ModuleType, Callable[..., Any]]:
    """The module and the function; the module is looked for in the working directory too, as by `python -m`.

    Args:
        reference: "package.module:function".
        example: what a well-formed reference looks like, for an error.

    Raises:
        Refusal: the module cannot be imported, or holds no such function.
    """
    if not REFERENCE.fullmatch(reference):
        raise Refusal(f"{reference!r} is not of the form package.module:function", f"write for instance {example}")
    module_name, _, attribute = reference.partition(":")
    top_level = module_name.partition(".")[0]
    if top_level not in sys.modules and not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module can raise anything while it is imported
        fix = "run in the folder that holds the module, or install it"
        raise Refusal(f"cannot import {module_name}: {described(error)}", fix) from error
    try:
        function = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        raise Refusal(f"{module_name} has no {attribute!r}", "name a function of that module") from error
    if not callable(function):
        raise Refusal(f"{reference} is of type {type(function).__name__} and cannot be called", "name a function")
    return module, function


def signature_of(function: Callable[..., Any], reference: str) -> inspect.Signature:
    """What arguments a plain function takes.

    Raises:
        Refusal: it is an async function, or one whose arguments cannot be read.
    """
    if inspect.iscoroutinefunction(function):
        raise Refusal(f"{reference} is an async function", "give a plain one, for instance one with asyncio.run")
    try:
        return inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise Refusal(f"{reference} has no readable signature", "wrap it in a Python function") from error


def source_identity(function: Callable[..., Any], module: ModuleType) -> dict[str, Any]:
    """What decides the function's results: its modules' source, and the versions of its distribution and of those
    that `depends_on` names. Modules that it imports are not followed.

    Args:
        module: where the function was found, which may be another than the one that defines it.

    Raises:
        Refusal: the source cannot be read.
    """
    definer = inspect.getmodule(inspect.unwrap(function)) or module
    top_level = definer.__name__.partition(".")[0]
    distributions = {
        *_distributions(tuple(sys.path)).get(top_level, ()),
        *getattr(function, "distributions", ()),
    }
    source = _source(module) + (_source(definer) if definer is not module else b"")
    return {
        "source_sha256": hashlib.sha256(source).hexdigest(),
        "distributions": {name: _version(name) for name in sorted(distributions)},
    }


@lru_cache(maxsize=1)
def _distributions(path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Of each top-level module the distributions that hold it, on that `sys.path`: every installed one is opened."""
    return metadata.packages_distributions()


def described(error: BaseException) -> str:
    """An error's type and message, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _source(module: ModuleType) -> bytes:
    try:
        return inspect.getsource(module).encode()
    except (OSError, TypeError) as error:  # compiled, or an empty file
        if file := getattr(module, "__file__", None):
            return Path(file).read_bytes()
        raise Refusal(
            f"the source of {module.__name__} cannot be read, so what it returns cannot be cached",
            "wrap the function in a module of your own",
        ) from error


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
