"""How fast this machine multiplies matrices in bfloat16 and in float32: measured once, kept in the cache.

A processor without units for bfloat16 takes many times as long as in float32; one that has them, and every newer
accelerator, is two to sixteen times as fast.
"""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from modpo.base.files import read_sealed, sha256_json, write_sealed
from modpo.models.folders import device

FOLDER = "matmul"  # in the cache
SHAPE = 128, 576, 1536  # tokens, hidden and intermediate size: at many tokens more the ratio is the same
ACCELERATOR_SHAPE = 2048, 2048, 8192  # below, starting a kernel takes longer than running it
LEAST_REPEATS, LEAST_SECONDS = 3, 0.2
# Settings of oneDNN, ATen and MKL that change which instructions are used, or what float32 is multiplied in.
SETTINGS = (
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
    *("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS"),
)


@dataclass(frozen=True)
class MatmulSpeed:
    """Floating-point operations a second of a layer's matrix product; 0 where the device has none in that format."""

    bfloat16: float
    float32: float

    @property
    def faster(self) -> str:
        """The faster format; of two alike, float32."""
        return "bfloat16" if self.bfloat16 > self.float32 else "float32"

    def factor(self, dtype: str) -> float:
        """How many times as fast as in the other format it is in `dtype`, bfloat16 or float32."""
        other: float = getattr(self, _other(dtype))
        return getattr(self, dtype) / other if other else float("inf")

    def compared(self, dtype: str) -> str:
        """How fast it is in `dtype`, in words: `2.1 times as fast as float32`."""
        if not getattr(self, dtype):
            return "not there"
        if not getattr(self, _other(dtype)):
            return f"the only format: {_other(dtype)} is not there"
        return f"{self.factor(dtype):.2g} times as fast as {_other(dtype)}"


def _other(dtype: str) -> str:
    return "float32" if dtype == "bfloat16" else "bfloat16"


def matmul_speed(cache_dir: Path, where: str | None = None) -> MatmulSpeed:
    """This machine's, as it is kept in the cache; else measured, for some tenths of a second, and kept.

    A file that is damaged is made anew, and a cache that cannot be written keeps nothing.

    Args:
        where: the kind of device; default: the one that single-process work runs on.
    """
    where = where or device()
    machine = _machine(where)
    path = cache_dir / FOLDER / f"{sha256_json(machine)[:24]}.json"
    kept = _read(path)
    if kept is None:
        measured = _measured(where)
        kept = _read(path) or measured  # of two processes that measure at once, both go by the first
        if kept is measured:
            with suppress(OSError):
                write_sealed(path, {"machine": machine, "flops": asdict(measured)})
    return kept


def _read(path: Path) -> MatmulSpeed | None:
    try:
        return MatmulSpeed(**{name: float(flops) for name, flops in read_sealed(path)["flops"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _machine(where: str) -> dict[str, Any]:
    """What the measurement is of."""
    import torch

    return {
        "host": platform.node(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if where == "cuda" else where,
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "float32": torch.get_float32_matmul_precision(),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


@cache
def _processor() -> str:
    """The processor's model."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _measured(where: str) -> MatmulSpeed:
    """By the fastest of some products in each format, in turn: another process may take the processor for a while."""
    rows, inner, outer = SHAPE if where == "cpu" else ACCELERATOR_SHAPE
    names = ("bfloat16", "float32")
    products = {name: _Product(name, where, (rows, inner, outer)) for name in names}
    fastest = dict.fromkeys(names, float("inf"))
    repeats, start = 0, time.perf_counter()
    while repeats <= LEAST_REPEATS or time.perf_counter() - start < LEAST_SECONDS:
        for name, product in products.items():
            fastest[name] = min(fastest[name], product.seconds())
        repeats += 1
    return MatmulSpeed(**{name: 2 * rows * inner * outer / fastest[name] for name in names})


class _Product:
    """A layer's matrix product in a number format. The first is the slowest: what it needs is set up then."""

    def __init__(self, dtype: str, where: str, shape: tuple[int, int, int]) -> None:
        self._dtype, self._where, self._shape = dtype, where, shape

    @cached_property
    def _factors(self) -> tuple[Any, Any]:
        """Tokens (rows, inner) and weight (outer, inner); some devices have no tensors in a format."""
        import torch

        rows, inner, outer = self._shape
        kind = {"dtype": getattr(torch, self._dtype), "device": self._where}
        return torch.ones(rows, inner, **kind), torch.ones(outer, inner, **kind)

    def seconds(self) -> float:
        """How long one takes; endless where the device has none in that format."""
        import torch

        try:
            tokens, weight = self._factors
            start = finished()
            torch.nn.functional.linear(tokens, weight)
            return finished() - start
        except (RuntimeError, TypeError):
            return float("inf")


def finished() -> float:
    """The time at which the device has done all that it was given."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
