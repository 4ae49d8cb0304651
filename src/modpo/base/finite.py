"""Weights on disk that no model can work with."""

from __future__ import annotations

from pathlib import Path


def nonfinite_tensors(path: Path) -> list[str]:
    """Names of the tensors of a safetensors file that hold NaN or infinity; read one at a time."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        read = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 (it is no mapping)
        # Numbers of eight bits are quantised: torch cannot tell, and they are never trained.
        return [
            name
            for name, tensor in read
            if tensor.is_floating_point() and tensor.element_size() > 1 and not tensor.isfinite().all()
        ]
