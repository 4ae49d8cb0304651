"""What the other rows were found on: the card, the versions, the model, and the rate of matrix products."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.gpu_check.rows import HELD, MEASURED, MISSING, Row
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.stand_in import make_stand_in
from modpo.base.errors import ModpoError
from modpo.models.embedded import fetch_model
from modpo.models.folders import default_cache_dir, device

PACKAGES = ("torch", "triton", "transformers", "trl", "peft", "accelerate", "datasets")
STAND_IN = "stand-in"


def check(setting: Setting) -> Iterator[Row]:
    yield _card()
    versions = {name: _version(name) for name in PACKAGES}
    text = ", ".join(f"{name} {number}" for name, number in versions.items())
    yield Row("machine", "versions", f"Python {platform.python_version()}, {text}", MEASURED, versions)
    for dtype in (torch.bfloat16, torch.float32):
        rate = matmul_rate(dtype, 1024 if setting.small else 8192)
        name = str(dtype).removeprefix("torch.")
        yield Row("machine", f"matrix products, {name}", f"{rate / 1e12:.2f} TFLOP/s", MEASURED, {"flops": rate})
    yield _model(setting)


def _card() -> Row:
    if not torch.cuda.is_available():
        capability = torch.backends.cpu.get_cpu_capability()
        text = f"{platform.machine()}, {capability}, {torch.get_num_threads()} threads"
        return Row("machine", "card", f"no GPU: run on the CPU ({text}) as far as it goes", MISSING, {"cpu": text})
    card = torch.cuda.get_device_properties(0)
    numbers = {
        "card": card.name,
        "capability": f"{card.major}.{card.minor}",
        "gb": card.total_memory / 1e9,
        "cuda": torch.version.cuda,
        "cards": torch.cuda.device_count(),
    }
    text = f"{card.name}, {numbers['gb']:.0f} GB, compute capability {numbers['capability']}, CUDA {torch.version.cuda}"
    return Row("machine", "card", text, HELD, numbers)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def matmul_rate(dtype: torch.dtype, size: int) -> float:
    """FLOP/s of the product of two square matrices, the best of five."""
    a, b = (torch.randn(size, size, dtype=dtype, device=device()) for _ in range(2))
    seconds = []
    for _ in range(6):
        synchronize()
        started = time.perf_counter()
        a @ b
        synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[1:])


def synchronize() -> None:
    """Wait until the card has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _model(setting: Setting) -> Row:
    """The model that the other parts read: as given, the embedded one, or the stand-in."""
    numbers = {"folder": setting.model, "trained": True}
    if setting.model:
        return Row("machine", "model", f"as given: {Path(setting.model).name}", HELD, numbers)
    reason = "small sizes"
    if not setting.small:
        try:
            folder = fetch_model(default_cache_dir(), progress=lambda _line: None)
            return Row("machine", "model", f"the embedded one, {folder.name}", HELD, numbers | {"folder": str(folder)})
        except ModpoError as error:
            reason = " ".join(str(error).split())[:120]
    folder = make_stand_in(Path(setting.work) / STAND_IN, small=setting.small)
    status = MEASURED if setting.small else MISSING
    numbers |= {"folder": str(folder), "trained": False}
    return Row("machine", "model", f"random weights in its shape ({reason})", status, numbers)
