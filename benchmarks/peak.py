"""The best rate at which this machine multiplies a model's own matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.flops import Shapes

PEAK_ROWS = 1024


class Peak:
    """The best rate of the model's own matrix products, forward and to the input, in FLOPs a second."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype) -> None:
        self._pairs = [
            (torch.randn(PEAK_ROWS, i, dtype=dtype), torch.randn(o, i, dtype=dtype) * 0.02)
            for i, o in sorted(shapes.products)
            if o < 8192  # the head's outputs would not fit in any cache
        ]
        self.best = 0.0

    def measure(self) -> None:
        """Multiply all of them once more."""
        for x, weight in self._pairs:
            seconds, y = timed(lambda x=x, w=weight: torch.nn.functional.linear(x, w))
            back, _ = timed(lambda y=y, w=weight: y @ w)
            self.best = max(self.best, 2.0 * x.numel() * len(weight) / min(seconds, back))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what it returned."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result
