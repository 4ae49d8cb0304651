"""What fails by itself is recorded and the rest goes on: a point of a sweep, a sweep of a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modpo.base.errors import AGAIN, NO_MEMORY, EnvironmentFault, InputError, IntegrityError, ModpoError, one_line
from modpo.base.files import write_json
from modpo.base.progress import say
from modpo.base.text import redacted

FAILED = "failed"  # the folder, beside what went well, of what is recorded


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


def fix_of(records: Sequence[Path]) -> str:
    """What to do about failures: the same again where memory ran out, for that may go well the next time.

    Args:
        records: the file of each.
    """
    reasons = [json.loads(path.read_text("utf-8"))["reason"] for path in records if path.is_file()]
    if any(NO_MEMORY.search(reason) or AGAIN in reason for reason in reasons):
        return f"free memory or lower what needs it, and {AGAIN}"
    return f"mend the cause, which stands above and in {records[0].parent}"
