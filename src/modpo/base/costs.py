"""The cost of a computation: seconds, tokens, passes through a model, memory, devices.

    with Meter() as meter:
        ...                      # what reads models or samples from them counts itself, by `count`
    meter.cost

Costs are written into the manifest of what they made, so that what is found in a cache still has its cost.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, replace
from time import monotonic
from typing import Any

from modpo.base.memory import peak_memory, reset_peak_memory

SECONDS_PER_HOUR = 3600
COUNTS = ("tokens", "tokens_generated", "forward_passes", "backward_passes")  # of a `Cost`


@dataclass(frozen=True)
class Cost:
    """The cost of a computation."""

    seconds: float
    tokens: int  # read to be trained on
    tokens_generated: int = 0
    forward_passes: int = 0  # a step of generation is one, for all the answers of a batch
    backward_passes: int = 0
    peak_memory_bytes: int = 0  # of the accelerators where there are some, else of the process
    devices: int = 1  # processes, each with one

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Cost:
        """From the JSON of a manifest, also one that lacks what older versions did not count."""
        there = {field.name: written[field.name] for field in fields(cls) if field.name in written}
        return cls(**{"seconds": 0.0, "tokens": 0, **there})

    @property
    def device_hours(self) -> float:
        """Hours times devices."""
        return self.seconds * self.devices / SECONDS_PER_HOUR

    def __add__(self, other: Cost) -> Cost:
        """One after the other: sums, but the larger memory and number of devices."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("seconds", *COUNTS)}
        peak = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return Cost(**sums, peak_memory_bytes=peak, devices=max(self.devices, other.devices))

    def share(self, of: int) -> Cost:
        """An equal part, where one training made `of` policies."""
        return replace(self, seconds=self.seconds / of, **{name: getattr(self, name) // of for name in COUNTS})

    def written(self) -> dict[str, Any]:
        """For a manifest."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}


NOTHING = Cost(0.0, 0)


class Meter:
    """What is done within it, as a `Cost`; meters may lie in one another."""

    def __init__(self) -> None:
        self._counted = NOTHING
        self._started = self._ended = 0.0
        self._open = False

    def __enter__(self) -> Meter:
        self._outer = _METERS.get()
        for meter in self._outer:
            meter.note_memory(peak_memory())
        reset_peak_memory()
        _METERS.set((*self._outer, self))
        self._started, self._open = monotonic(), True
        return self

    def __exit__(self, *error: object) -> None:
        self._ended, self._open = monotonic(), False
        self.note_memory(peak_memory())
        for meter in self._outer:
            meter.note_memory(self._counted.peak_memory_bytes)
        _METERS.set(self._outer)

    @property
    def cost(self) -> Cost:
        """So far, or until it was left."""
        if self._open:
            self.note_memory(peak_memory())
        seconds = (monotonic() if self._open else self._ended) - self._started
        return replace(self._counted, seconds=seconds, devices=int(os.environ.get("WORLD_SIZE", "1")))

    def add(self, counted: Cost) -> None:
        """What `count` was told."""
        self._counted += counted

    def note_memory(self, peak: int) -> None:
        """A peak that was reached within it."""
        self._counted += replace(NOTHING, peak_memory_bytes=peak)


_METERS: ContextVar[tuple[Meter, ...]] = ContextVar("meters", default=())  # that are open, the innermost last


def count(*, tokens: int = 0, tokens_generated: int = 0, forward_passes: int = 0, backward_passes: int = 0) -> None:
    """Count something on every open meter."""
    counted = Cost(0.0, tokens, tokens_generated, forward_passes, backward_passes)
    for meter in _METERS.get():
        meter.add(counted)
