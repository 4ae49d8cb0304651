"""What fails by itself is recorded and the rest goes on: a point of a sweep, a sweep of a comparison."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from modpo.base.errors import EnvironmentFault, InputError, IntegrityError, ModpoError, one_line
from modpo.base.files import write_json
from modpo.base.progress import say
from modpo.base.text import redacted

FAILED = "failed"  # the folder of records, in an output folder
AGAIN = "run the same command again, what is finished is kept"
ACT = "act on the reasons first, for they would come back: they stand above and in {}; what is finished is kept"
# Reasons that may be gone when the same is tried again: memory, and an accelerator or its network that gave out.
PASSING = re.compile(rf"^\w+: out of memory|\b(CUDA|HIP|XPU|MPS) error|\bNCCL|cuDNN error|{re.escape(AGAIN)}", re.I)


def fix_of(reasons: Iterable[str], folder: Path) -> str:
    """What to do about recorded failures: the same again, where that can help with one of them.

    Args:
        reasons: as `done_or_recorded` writes them. folder: where.
    """
    return AGAIN if any(PASSING.search(reason) for reason in reasons) else ACT.format(folder)


def done_or_recorded(do: Callable[[], object], name: str, record: Path, about: Mapping[str, Any]) -> bool:
    """Do something, or write into a file why it failed; the file of an earlier failure goes when it is done.

    Args:
        name: what is done, for the console.
        about: what the file says beside the `reason`.

    Raises:
        InputError, IntegrityError, EnvironmentFault: not of its own making: the rest would meet it too.
    """
    try:
        do()
    except (InputError, IntegrityError, EnvironmentFault):
        raise
    except (ModpoError, RuntimeError, ValueError, MemoryError) as error:
        reason = redacted(one_line(error))
        say(f"{name} failed: {reason}")
        write_json(record, {**about, "reason": f"{type(error).__name__}: {reason}"})
        return False
    record.unlink(missing_ok=True)
    return True
