"""How many cases are tried, and what may come of one: a value, or a ModpoError that says what to do.

`make fuzz` tries many at random. The suite tries a few, the same every time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

from modpo.base.errors import MOST_PROBLEMS_SHOWN, InputError, ModpoError

EXAMPLES = int(os.environ.get("MODPO_FUZZ_EXAMPLES", "10"))  # of each test

fuzz = settings(
    max_examples=EXAMPLES,
    derandomize="MODPO_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Count:
    """How many cases were tried, and how many of them were refused."""

    tried = 0
    refused = 0


def survives(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the function returns, None if it refuses; any other error is a failure."""
    Count.tried += 1
    try:
        return function(*args, **kwargs)
    except ModpoError as error:
        refusal = error
    Count.refused += 1
    lines = str(refusal).split("\n")
    if isinstance(refusal, InputError):
        assert len(lines) == min(len(refusal.problems), MOST_PROBLEMS_SHOWN + 1), "one line a problem"
        lines = lines[:MOST_PROBLEMS_SHOWN]
    assert all("; fix: " in line for line in lines), lines
    assert refusal.exit_code > 1
    return None
