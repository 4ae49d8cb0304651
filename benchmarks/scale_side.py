"""One start of `modpo train` in a process of its own, with a clock at the beginning of training and at the first step.

`python -m benchmarks.scale_side EXPERIMENT WEIGHTS OUTPUT STARTED` prints one line of JSON; STARTED is the Unix time
at which this process was begun.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from benchmarks.own_process import tell
from modpo.cli import main as modpo


class Marks(TrainerCallback):
    """Wall-clock and processor seconds since the process was begun, at what happens first."""

    found: dict[str, float] = {}  # noqa: RUF012 (transformers makes the instance)

    @classmethod
    def mark(cls, name: str, started: float | None = None) -> None:
        cls.started = started or cls.started
        cls.found.setdefault(f"{name}_seconds", round(time.time() - cls.started, 2))
        cls.found.setdefault(f"{name}_cpu_seconds", round(time.process_time(), 2))

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        self.mark("training_starts")

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        self.mark("first_step_ends")


def peaks() -> dict[str, float]:
    """Most memory that was resident, mapped pages of files included; and, of now, what is no file's."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    gigabytes = {name: int(status[name].split()[0]) * 1024 / 1e9 for name in ("VmHWM", "RssAnon", "RssFile")}
    return {
        "peak_gb": round(max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, gigabytes["VmHWM"]), 3),
        "anonymous_gb_at_end": round(gigabytes["RssAnon"], 3),
        "file_gb_at_end": round(gigabytes["RssFile"], 3),
    }


def main(experiment: str, weights: str, output: str, started: str) -> None:
    DEFAULT_CALLBACKS.append(Marks)
    Marks.mark("imported", float(started))
    code = modpo(["train", experiment, "--weights", weights, "--output", output])
    if code:
        sys.exit(f"modpo train ended with {code}")
    Marks.mark("command_ends")
    tell({**Marks.found, **peaks()})


if __name__ == "__main__":
    main(*sys.argv[1:])
