"""The most memory that was held since a point in time."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # as proc(5) has it: the peak of resident memory begins anew
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of `ru_maxrss`


def peak_memory() -> int:
    """Bytes held at most by the tensors of the accelerators in use; without one, by the process.

    Counted since `reset_peak_memory`; of a process only where the system is Linux, elsewhere since it began.
    """
    cuda = _cuda()
    if cuda is not None:
        return sum(cuda.max_memory_allocated(i) for i in range(cuda.device_count()))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def reset_peak_memory() -> None:
    """Count the peak from what is held now."""
    cuda = _cuda()
    if cuda is not None:
        for i in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(i)
        return
    with suppress(OSError):  # not Linux, or not allowed
        CLEAR_REFS.write_text(RESET_PEAK)


def _cuda() -> Any:
    """`torch.cuda` where something has been put there; torch is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
