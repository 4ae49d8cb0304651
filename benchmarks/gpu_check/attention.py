"""Packed attention alone against dense attention: values and gradients in two dtypes, compilations, speed.

On a GPU this is flex attention, compiled. On a CPU it is block attention; of flex attention there are the values only.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.gpu_check.machine import synchronize
from benchmarks.gpu_check.rows import MEASURED, Row, judged
from benchmarks.gpu_check.setting import Setting
from modpo.forward import attention
from modpo.forward.attention import packed_attention_forward
from modpo.forward.packing import PackedLayout, pack
from modpo.models.folders import device

# Packed attention may be this many times as far from float64 as dense attention in the same dtype, and no further.
WORST_RATIO, ROUNDING = 2.0, 1e-5
MOST_COMPILATIONS = 3  # for many layouts of one model: rows within a tile, rows of whole tiles, others


@dataclass(frozen=True)
class Shape:
    """Heads, key heads, and the size of a head."""

    heads: int
    kv_heads: int
    D: int


SMOLLM, QWEN = Shape(9, 3, 64), Shape(16, 2, 128)


def check(setting: Setting) -> Iterator[Row]:
    long = 400 if setting.small else 1500
    cases = [
        ("within a tile of 128", SMOLLM, torch.bfloat16, layout_of(90)),
        (f"{long} positions and some", SMOLLM, torch.bfloat16, layout_of(long)),
        ("whole tiles", SMOLLM, torch.bfloat16, layout_of(512, exact=True)),
        ("heads of 128", QWEN, torch.bfloat16, layout_of(long)),
        ("float32", SMOLLM, torch.float32, layout_of(long)),
    ]
    for name, shape, dtype, layout in cases:
        yield compared(name, shape, layout, inputs(shape, layout.length, dtype))
    # Under autocast, rotary embeddings leave q and k in float32 beside a bfloat16 v.
    layout = layout_of(long)
    q, k, v = inputs(SMOLLM, layout.length, torch.bfloat16)
    as_autocast = [q.detach().float().requires_grad_(), k.detach().float().requires_grad_(), v]
    yield compared("q and k in float32, v in bfloat16", SMOLLM, layout, as_autocast)
    if device() == "cpu":
        yield uncompiled(layout_of(long))
    else:
        yield compilations(8 if setting.small else 24)
    yield speed(layout_of(700 if setting.small else 8192))


def layout_of(length: int, *, exact: bool = False, seed: int = 0) -> PackedLayout:
    """Prompt groups that together take `length` positions and a few more; `exact`: not one more."""
    rng = random.Random(f"{length} {seed}")
    prompts: list[list[int]] = []
    responses: list[list[list[int]]] = []
    left = length
    while left > 0:
        prompts.append([0] * rng.randint(1, 1 + length // 4))
        responses.append([[0] * rng.randint(1, 2 + length // 8) for _ in range(rng.randint(0, 5))])
        left -= len(prompts[-1]) + sum(len(response) - 1 for response in responses[-1])
    if exact:  # a prompt without responses fills up what is missing to the next multiple
        total = length - left
        prompts.append([0] * (length - total % length))
        responses.append([])
    return pack(prompts, responses).layout


def inputs(shape: Shape, T: int, dtype: torch.dtype) -> list[Tensor]:
    """q (1, H, T, D), k and v (1, H_kv, T, D)."""
    generator = torch.Generator().manual_seed(T)
    sizes = [(1, heads, T, shape.D) for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
    return [torch.randn(s, generator=generator).to(device=device(), dtype=dtype).requires_grad_() for s in sizes]


def packed(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout) -> Tensor:
    """As a model calls it: (1, T, H, D)."""
    return packed_attention_forward(nn.Module(), q, k, v, None, packed=layout)[0]


def dense(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout) -> Tensor:
    """softmax(q k / sqrt(D)) v over the whole row, hidden scores at -inf: (1, T, H, D)."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    q, k = q.to(v.dtype), k.to(v.dtype)
    hidden = ~layout.dense_mask.to(q.device)
    scores = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def compared(name: str, shape: Shape, layout: PackedLayout, given: list[Tensor]) -> Row:
    """Distances of values and gradients from float64, those of packed attention over those of dense attention."""
    weight = torch.randn(1, layout.length, shape.heads, shape.D, generator=torch.Generator().manual_seed(1)).to(
        device()
    )
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    truth = results(dense, exact, layout, weight)
    plain, fast = (results(function, given, layout, weight) for function in (dense, packed))
    ratios, worst = {}, 0.0
    for what, found, reference, expected in zip(("out", "dq", "dk", "dv"), fast, plain, truth, strict=True):
        ours, theirs = ((x.double() - expected).norm() / expected.norm() for x in (found, reference))
        ratios[what] = (ours / (theirs + ROUNDING)).item()
        worst = max(worst, ours.item())
    text = ", ".join(f"{what} {ratio:.2f}" for what, ratio in ratios.items())
    held = max(ratios.values()) <= WORST_RATIO
    result = f"T {layout.length}: error over dense attention's: {text}; at most {worst:.1e}"
    return judged("attention", name, result, held, positions=layout.length, worst_error=worst, **ratios)


def results(
    function: Callable[..., Tensor], given: list[Tensor], layout: PackedLayout, weight: Tensor
) -> tuple[Tensor, ...]:
    out = function(*given, layout)
    return out.detach(), *torch.autograd.grad((out * weight.to(out.dtype)).sum(), given)


def uncompiled(layout: PackedLayout) -> Row:
    """The values of flex attention on a CPU, where it has no gradient."""
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = (tensor.detach() for tensor in inputs(SMOLLM, layout.length, torch.float32))
    mask = attention._flex_mask(layout, q.device)
    found = flex_attention(q, k, v, block_mask=mask, enable_gqa=True).transpose(1, 2)
    error = (found - dense(q, k, v, layout)).abs().max().item()
    name = "flex attention, uncompiled, values only"
    return judged("attention", name, f"T {layout.length}: off by at most {error:.1e}", error < 1e-4, worst_error=error)


def compilations(rows: int) -> Row:
    """How often flex attention is compiled for rows of many lengths."""
    from torch._dynamo.utils import counters

    before = counters["stats"]["unique_graphs"]
    seconds = []
    for seed in range(rows):
        layout = layout_of(600 + 37 * seed, seed=seed)
        given = inputs(SMOLLM, layout.length, torch.bfloat16)
        started = time.perf_counter()
        packed(*given, layout).sum().backward()
        synchronize()
        seconds.append(time.perf_counter() - started)
    compiled = counters["stats"]["unique_graphs"] - before
    result = f"{compiled} for {rows} layouts; slowest {max(seconds):.1f} s, median {sorted(seconds)[rows // 2]:.3f} s"
    return judged("attention", "further compilations", result, compiled <= MOST_COMPILATIONS, compilations=compiled)


def speed(layout: PackedLayout) -> Row:
    """Forward and backward: packed attention beside torch's own with the dense mask."""
    q, k, v = inputs(SMOLLM, layout.length, torch.bfloat16)
    mask = layout.dense_mask.to(q.device)

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    ours = best_seconds(lambda: packed(q, k, v, layout).sum().backward())
    theirs = best_seconds(lambda: masked(q, k, v).sum().backward())
    result = (
        f"T {layout.length}: {ours * 1e3:.2f} ms, dense mask {theirs * 1e3:.2f} ms: {theirs / ours:.1f} times as fast"
    )
    numbers = {"seconds": ours, "dense_seconds": theirs, "speed_ratio": theirs / ours}
    return Row("attention", "forward and backward", result, MEASURED, numbers)


def best_seconds(step: Callable[[], None], rounds: int = 5) -> float:
    seconds = []
    for _ in range(rounds + 1):
        synchronize()
        started = time.perf_counter()
        step()
        synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
