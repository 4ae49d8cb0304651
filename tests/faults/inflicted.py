"""Faults that are set up inside a run before it starts. The server imports this in the process of the run."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any


def nan_loss(objective: str, weight: float, step: int) -> None:
    """At one step of the vector with that weight, the policy's log-probs are NaN."""
    from modpo.training.trainer import MODPOTrainer

    real = MODPOTrainer._response_logps

    def broken(self: MODPOTrainer, *args: Any, **kwargs: Any) -> Any:
        logps = real(self, *args, **kwargs)
        now = self.args.vector[objective] == weight and self.state.global_step == step and self.model.training
        return logps * float("nan") if now else logps

    MODPOTrainer._response_logps = broken  # type: ignore[method-assign]


def limit_memory(megabytes: int) -> None:
    """The run may take so much more address space than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def closed(number: int) -> None:
    """Started with that standard stream closed."""
    os.close(number)
    setattr(sys, {1: "stdout", 2: "stderr"}[number], None)


def broken_pipe(number: int) -> None:
    """That standard stream is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, number)
    os.close(writer)
