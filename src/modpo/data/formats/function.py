"""A layout that is a Python function of the user's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from modpo.base.errors import InputError, ModpoError, Problem, is_out_of_memory
from modpo.base.user_function import Refusal, described, import_function, refused_at, signature_of, source_identity
from modpo.data.rows import Row

RETURNS = "return a dict as in the layout `preference`, or None to leave the row out"


def import_layout(reference: str, *, where: str, field: str) -> tuple[Callable[[Row], Row | None], dict[str, Any]]:
    """A function of one raw row, as a dict, that returns a row of the layout `preference`, or None to leave it out.

    Args:
        reference: "package.module:function".
        where, field: what an error names.

    Returns:
        The checked function, which raises an InputError without `where` for a row that fails: the caller knows the
        row's place. And its identity: the reference, the source of its module, and versions of packages, see
        `modpo.base.user_function.source_identity`.

    Raises:
        InputError: the module cannot be imported, or holds no function that can be called with one row.
    """
    with refused_at(where, field):
        module, function = import_function(reference, example="my_layouts:forum_row")
        signature = signature_of(function, reference)
        try:
            signature.bind({})
        except TypeError as error:
            raise Refusal(f"{reference} cannot be called with one row: {error}", "define it as f(row)") from error
        identity = {"function": reference, **source_identity(function, module)}
    return partial(_lay_out, function, reference), identity


def _lay_out(function: Callable[[Row], Any], reference: str, row: Row) -> Row | None:
    """The row, laid out and checked. The function gets a copy, which it may edit."""
    given = copy.deepcopy(row)
    try:
        returned = function(given)
    except ModpoError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        fix = "handle this row in the function, or return None to leave it out"
        raise InputError(Problem("", "format", f"{reference} raised {described(error)}", fix)) from error
    if returned is not None and not isinstance(returned, dict):
        problem = f"{reference} returned {type(returned).__name__}, not a row"
        raise InputError(Problem("", "format", problem, RETURNS))
    if returned and not all(isinstance(name, str) for name in returned):
        problem = f"{reference} returned a row with a field whose name is not text"
        raise InputError(Problem("", "format", problem, RETURNS))
    return returned
