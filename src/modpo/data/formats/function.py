"""A layout that is a Python function of the user's."""

from __future__ import annotations

import copy
from typing import Any

from modpo.base.errors import InputError, ModpoError, Problem, is_out_of_memory
from modpo.base.user_function import Refusal, described, import_function, refused_at, signature_of, source_identity
from modpo.data.rows import Row

RETURNS = "return a dict as in the layout `preference`, or None to leave the row out"


class FunctionFormat:
    """`function(row)`: one raw row, as a dict, into a row of the layout `preference`, or None to leave it out.

    Attributes:
        identity: the reference, the source of the function's module, and versions of packages, see
            `modpo.base.user_function.source_identity`.
    """

    def __init__(self, reference: str, *, where: str, field: str) -> None:
        """Import the function and check its signature.

        Args:
            reference: "package.module:function".
            where, field: what an error names.

        Raises:
            InputError: the module cannot be imported, or holds no function that can be called with one row.
        """
        self.reference = reference
        with refused_at(where, field):
            module, self._function = import_function(reference, example="my_layouts:forum_row")
            signature = signature_of(self._function, reference)
            try:
                signature.bind({})
            except TypeError as error:
                raise Refusal(f"{reference} cannot be called with one row: {error}", "define it as f(row)") from error
            self.identity: dict[str, Any] = {"function": reference, **source_identity(self._function, module)}

    def __call__(self, row: Row) -> Row | None:
        """The row, laid out. The function gets a copy, which it may edit.

        Raises:
            InputError: the function raises, or returns no row. Its `where` is empty: the caller knows the row's place.
        """
        given = copy.deepcopy(row)
        try:
            returned = self._function(given)
        except ModpoError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            fix = "handle this row in the function, or return None to leave it out"
            raise InputError(Problem("", "format", f"{self.reference} raised {described(error)}", fix)) from error
        problem = None
        if returned is not None and not isinstance(returned, dict):
            problem = f"{self.reference} returned {type(returned).__name__}, not a row"
        elif returned and not all(isinstance(name, str) for name in returned):
            problem = f"{self.reference} returned a row with a field whose name is not text"
        if problem:
            raise InputError(Problem("", "format", problem, RETURNS))
        return returned
