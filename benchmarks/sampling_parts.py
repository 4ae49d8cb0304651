"""What a step of sampling is made of, each way beside the one it replaced: the numbers of docs/decisions/0009.

    python -m benchmarks.sampling_parts

192 answers of SmolLM2-135M's shapes, milliseconds, the least of several.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks.peak import timed
from modpo.forward.prepacked import prepacked
from modpo.forward.sampling import sample_tokens

ANSWERS, HIDDEN, INNER, VOCABULARY = 192, 576, 1536, 49152
HEADS, KV_HEADS, SIZE = 9, 3, 64
OUTPUTS = ((HIDDEN, 576), (HIDDEN, 192), (HIDDEN, 192), (HIDDEN, 576), (HIDDEN, INNER), (HIDDEN, INNER), (INNER, 576))
LAYERS = 8  # of different weights, more than a cache holds


@torch.no_grad()
def main() -> None:
    print(f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    for dtype in (torch.bfloat16, torch.float32):
        print(f"{dtype}:")
        draws(dtype)
        for tokens in (48, 64):
            attention(dtype, tokens)
        for rows in (ANSWERS, 448):
            products(dtype, rows)


def draws(dtype: torch.dtype) -> None:
    """One token for each answer."""
    logits, at = torch.randn(ANSWERS, VOCABULARY).to(dtype), torch.rand(ANSWERS, dtype=torch.float64)
    tell("draw by torch.multinomial", least(lambda: torch.multinomial(logits.float().softmax(-1), 1)))
    tell("draw by the distribution function, with its log-prob", least(lambda: sample_tokens(logits, at)))


def attention(dtype: torch.dtype, tokens: int) -> None:
    """One layer of answers with so many tokens each."""
    q = torch.randn(ANSWERS, HEADS, 1, SIZE).to(dtype)
    k, v = (torch.randn(ANSWERS, KV_HEADS, tokens, SIZE).to(dtype) for _ in range(2))
    tell(
        f"attention to {tokens} keys, as transformers' sdpa",
        least(lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True)),
    )
    by_head = q.view(ANSWERS, KV_HEADS, -1, SIZE)
    tell(f"attention to {tokens} keys, by products", least(lambda: (by_head @ k.transpose(-1, -2)).softmax(-1) @ v))


def products(dtype: torch.dtype, rows: int) -> None:
    """The linear layers of a layer, and the head."""
    layers = nn.ModuleList(nn.Linear(i, o, bias=False) for _ in range(LAYERS) for i, o in OUTPUTS).to(dtype)
    head = nn.ModuleList([nn.Linear(HIDDEN, VOCABULARY, bias=False)]).to(dtype)
    inputs = {size: torch.randn(rows, size).to(dtype) for size in (HIDDEN, INNER)}
    for name, module in (("layers", layers), ("head", head)):
        flops = sum(2.0 * rows * layer.weight.numel() for layer in module)
        plain = least(lambda module=module: [linear(inputs[layer.in_features], layer.weight) for layer in module])
        with prepacked(module):
            laid_out = least(lambda module=module: [layer(inputs[layer.in_features]) for layer in module])
        print(f"  {name}, {rows} rows: {flops / plain / 1e9:.0f} GFLOP/s, laid out once {flops / laid_out / 1e9:.0f}")


def least(work: Callable[[], Tensor | object], times: int = 10) -> float:
    """Seconds, the first call not counted."""
    work()
    return min(timed(work)[0] for _ in range(times))


def tell(what: str, seconds: float) -> None:
    print(f"  {what}: {seconds * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
