"""Frozen matrices laid out as oneDNN multiplies them, which else it does again for every product.

Of a CPU alone. Where oneDNN or one of its operators is not there, products are torch's own.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

DTYPES = (torch.float32, torch.bfloat16)
ROWS = 1024  # for which the layout is chosen; it does for others as well


class Prepacked:
    """One frozen matrix W (out, in) and its two products. The copies are made when they are first multiplied."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._of = (-1, -1)  # where the weights lay when they were copied, and their version
        self._forward: Tensor | None = None
        self._backward: Tensor | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"_weight": self._weight, "_of": (-1, -1), "_forward": None, "_backward": None}

    def outputs(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (T, in) -> x W^T + bias, (T, out)."""
        if not is_prepackable(self._weight):
            return linear(x, self._weight, bias)
        self._forget_others()
        if self._forward is None:
            self._forward = torch.ops.mkldnn._reorder_linear_weight(self._weight.detach(), ROWS)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._forward, bias, "none", [], "")
        return found

    def add_inputs(self, total: Tensor, d_outputs: Tensor) -> Tensor:
        """total (T, in), d_outputs (T, out) -> total + d_outputs W; `total` may be used up."""
        if not is_prepackable(self._weight):
            return total.addmm_(d_outputs, self._weight)
        self._forget_others()
        if self._backward is None:
            transposed = self._weight.detach().T.contiguous()
            self._backward = torch.ops.mkldnn._reorder_linear_weight(transposed, ROWS)
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(d_outputs, total, self._backward, None, "add")
        return found

    def _forget_others(self) -> None:
        """Drop copies of weights that are no longer these."""
        of = (self._weight.data_ptr(), self._weight._version)
        if of != self._of:
            self._forward = self._backward = None
            self._of = of


def is_prepackable(weight: Tensor) -> bool:
    """Whether oneDNN multiplies such a matrix here."""
    return weight.device.type == "cpu" and weight.dtype in DTYPES and _works(weight.dtype)


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether the operators, which torch gives no promise of, are there and multiply rightly."""
    try:
        x, weight = torch.ones(2, 3, dtype=dtype), torch.arange(12, dtype=dtype).view(4, 3)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
        y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        z = torch.ops.mkldnn._linear_pointwise.binary(x, torch.ones_like(y), packed, None, "add")
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    expected = x @ weight.T
    return torch.equal(y, expected) and torch.equal(z, expected + 1)
