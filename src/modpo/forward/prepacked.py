"""Linear layers whose weights are laid out once as oneDNN multiplies them, which else it does for every product.

For the few hundred rows of a step of sampling that is a tenth of the time in bfloat16, a fifth in float32; for the
thousands of rows of training it is nothing (docs/decisions). On a CPU alone, and where torch has the operators.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)
ROWS = 192  # for which the layout is chosen; it does for others as well
MOST_BYTES = 4 << 30  # of weights that are copied


@contextmanager
def prepacked(model: nn.Module) -> Iterator[None]:
    """Within it, the plain linear layers of a model that is not trained multiply by copies of their weights.

    A model of more than MOST_BYTES is left as it is.
    """
    layers: list[nn.Linear] = [module for module in model.modules() if is_prepackable(module)]  # type: ignore[misc]
    if sum(layer.weight.nbytes for layer in layers) > MOST_BYTES:
        layers = []
    try:
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
            layer.__dict__["packed_weight"] = packed
            layer.__dict__["forward"] = types.MethodType(_forward, layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
            layer.__dict__.pop("packed_weight", None)


def is_prepackable(module: nn.Module) -> bool:
    """Whether a module is a linear layer and nothing more, whose weights oneDNN multiplies here."""
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype in DTYPES and _works(weight.dtype)


def _forward(self: nn.Linear, x: Tensor) -> Tensor:
    """(..., in) -> (..., out)."""
    if x.dtype != self.weight.dtype or torch.is_autocast_enabled("cpu"):
        return type(self).forward(self, x)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.__dict__["packed_weight"], self.bias, "none", [], "")
    return found


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether the operators, which torch gives no promise of, are there and multiply rightly."""
    try:
        x, weight = torch.ones(2, 3, dtype=dtype), torch.arange(12, dtype=dtype).view(4, 3)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
        y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (RuntimeError, AttributeError):
        return False
    return torch.equal(y, x @ weight.T)
