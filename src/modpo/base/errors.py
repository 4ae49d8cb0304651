"""What can go wrong, in one line, with the exit code that the command line leaves with."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar

from modpo.base.text import first_line

MOST_PROBLEMS_SHOWN = 20
AGAIN = "run the same command again"  # a fix of what may go well the next time, and of nothing else


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where it stands, and what to do about it."""

    where: str  # "rows.jsonl:12", "experiment.yaml:7" or a folder
    field: str  # "chosen", "training.beta"; "" when the whole row or file is meant
    problem: str
    fix: str

    def __str__(self) -> str:
        place = f"{self.where}:{self.field}" if self.field else self.where
        return f"{place}: {self.problem}; fix: {self.fix}"


class ModpoError(Exception):
    """Base of every error that a user can act on: printed as one line, without a traceback."""

    exit_code: ClassVar[int] = 1


class InputError(ModpoError):
    """Bad data, configuration, weights or reward: found before any model is loaded, nothing written."""

    exit_code = 2

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        shown = [str(p).replace("\n", r"\n") for p in self.problems[:MOST_PROBLEMS_SHOWN]]
        hidden = len(self.problems) - len(shown)
        if hidden > 0:
            shown.append(f"and {hidden} more")
        super().__init__("\n".join(shown))


class Problems:
    """Collects what is wrong with many rows, up to as many problems as are shown at once.

        problems = Problems()
        for row in rows:
            with problems:
                check(row)
        problems.raise_any()

    Leaving a `with` that found the last problem to be shown raises at once.
    """

    def __init__(self) -> None:
        self._found: list[Problem] = []

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, InputError):
            return False
        self._found += error.problems
        if len(self._found) >= MOST_PROBLEMS_SHOWN:
            self.raise_any()
        return True

    def raise_any(self) -> None:
        """Raise everything that was found, if there is something.

        Raises:
            InputError: with all problems.
        """
        if self._found:
            raise InputError(self._found) from None


class EnvironmentFault(ModpoError):
    """The machine refuses: a folder is busy or read-only, the disk is full, an extra is not installed."""

    exit_code = 3


class IntegrityError(ModpoError):
    """A result on disk does not match what was asked for, or does not verify."""

    exit_code = 4


class PartialFailure(ModpoError):
    """Some points of a sweep failed; the others are kept."""

    exit_code = 5


class NumericError(ModpoError):
    """NaN or infinity in a loss, gradient, reward or log-probability."""

    exit_code = 6


# --- errors of Python and its libraries -----------------------------------------------------------------------

LESS_MEMORY = (
    "lower `training.per_device_train_batch_size`, `training.max_packed_tokens` or `data.max_length`, set "
    "`training.gradient_checkpointing: true`, or, where answers are sampled, lower `evaluation.batch_size`"
)
# How accelerators, and torch on a CPU, say in a plain RuntimeError that there is no memory left.
NO_MEMORY = re.compile(r"out of memory|(can't allocate|cannot allocate|not enough) memory|bad_alloc|ALLOC_FAILED", re.I)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, the system's, an accelerator's, or that of torch on a CPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    kinds = {kind.__name__ for kind in type(error).__mro__}  # by name: torch is not imported for it
    if not kinds.isdisjoint({"MemoryError", "OutOfMemoryError"}):
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


def one_line(error: BaseException) -> str:
    """What an error says, on one line; where memory ran out, also what to lower."""
    line = first_line(error)
    return f"out of memory: {line}; fix: {LESS_MEMORY}" if is_out_of_memory(error) else line
