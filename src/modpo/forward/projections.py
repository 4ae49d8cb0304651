"""Linear layers of one input, each with a low-rank update, as one differentiable function.

    y_i = x W_i^T + b_i + (x A_i^T) B_i^T,    W_i and b_i frozen

What is small is multiplied for all layers together: x A^T with the A_i below one another, and in the backward pass its
gradients. What is wide is added up by the products themselves: the gradient of x is one sum in place, where separate
layers would each make a tensor of its size, once for the base and once for the adapter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class Projection(NamedTuple):
    """One layer: W (out, in) and b (out,), frozen, and B (out, r) of its update; all in x's number format."""

    weight: Tensor
    bias: Tensor | None
    B: Tensor


def project(x: Tensor, A: Tensor, layers: list[Projection]) -> tuple[Tensor, ...]:
    """x (..., in) -> (..., out_i) of each layer.

    Args:
        A: (R, in), those of all layers below one another, scaled: R is the sum of their ranks.
    """
    flat = [tensor for layer in layers for tensor in layer]
    outputs: tuple[Tensor, ...] = _Project.apply(x.reshape(-1, x.shape[-1]), A, *flat)
    return tuple(y.view(*x.shape[:-1], -1) for y in outputs)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, *flat: Tensor | None) -> tuple[Tensor, ...]:
        """x (T, in), A (R, in), then weight, bias and B of each layer -> (T, out_i) each."""
        layers = _layers(flat)
        low = x @ A.T  # (T, R)
        parts = low.split([layer.B.shape[1] for layer in layers], 1)
        ctx.save_for_backward(x, A, low, *flat)
        return tuple(
            linear(x, layer.weight, layer.bias).addmm_(part, layer.B.T)
            for layer, part in zip(layers, parts, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """d_outputs (T, out_i) -> gradients of x (T, in), A (R, in) and each B (out_i, r_i)."""
        x, A, low, *flat = ctx.saved_tensors
        layers = _layers(flat)
        parts = low.split([layer.B.shape[1] for layer in layers], 1)
        d_low = torch.cat([d @ layer.B for d, layer in zip(d_outputs, layers, strict=True)], 1)  # (T, R)
        d_flat: list[Tensor | None] = []
        for d, part in zip(d_outputs, parts, strict=True):
            d_flat += [None, None, d.T @ part]
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = d_low @ A
            for d, layer in zip(d_outputs, layers, strict=True):
                d_x.addmm_(d, layer.weight)
        return d_x, d_low.T @ x, *d_flat


def _layers(flat: Any) -> list[Projection]:
    return [Projection(*flat[i : i + 3]) for i in range(0, len(flat), 3)]
