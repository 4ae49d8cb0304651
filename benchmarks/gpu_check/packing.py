"""A whole model that reads packed rows against the same model reading padded ones: log-probs and their gradients."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.gpu_check.rows import Row, judged
from benchmarks.gpu_check.setting import Setting
from modpo.forward.attention import packed_attention
from modpo.forward.logprobs import packed_logps, padded_logps
from modpo.forward.packability import packing_obstacle
from modpo.forward.packing import pack
from modpo.models.folders import device

WORST = {torch.float32: 1e-3}  # of the norm, packed against padded
WORST_RATIO = 2.0  # in bfloat16: how far from float32, packed over padded

Texts = tuple[list[list[int]], list[list[list[int]]]]


def check(setting: Setting) -> Iterator[Row]:
    texts = made_texts(60 if setting.small else 300)
    read = {dtype: AutoModelForCausalLM.from_pretrained(setting.model, dtype=dtype) for dtype in (torch.float32,)}
    exact = read[torch.float32].to(device())
    yield packable(exact, "float32")
    truth = padded(exact, texts)
    found = packed(exact, texts)
    yield from (close(what, a, b) for what, a, b in zip(("log-probs", "gradients"), found, truth, strict=True))
    del exact, read
    rounded = AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.bfloat16).to(device())
    yield packable(rounded, "bfloat16")
    plain, found = padded(rounded, texts), packed(rounded, texts)
    for what, a, b, c in zip(("log-probs", "gradients"), found, plain, truth, strict=True):
        yield as_close(what, a, b, c)


def made_texts(longest: int) -> Texts:
    """Three prompts with four responses each."""
    rng = random.Random(0)

    def text() -> list[int]:
        return [rng.randrange(300, 3000) for _ in range(rng.randint(longest // 4, longest))]

    return [text() for _ in range(3)], [[text() for _ in range(4)] for _ in range(3)]


def packable(model: PreTrainedModel, dtype: str) -> Row:
    """That `packing: auto` packs here; where it would not, everything works and nothing is fast."""
    obstacle = packing_obstacle(model)
    return judged("packing", f"auto packs, {dtype}", obstacle or "yes", obstacle is None)


def padded(model: PreTrainedModel, texts: Texts) -> tuple[Tensor, Tensor]:
    """Log-probs, (M,), and the gradient of their sum, flat: each response read with its prompt."""
    return with_gradient(model, padded_logps(model, *texts))


def packed(model: PreTrainedModel, texts: Texts) -> tuple[Tensor, Tensor]:
    """The same, read as a packed row."""
    with packed_attention(model):
        return with_gradient(model, packed_logps(model, pack(*texts).to(model.device)))


def with_gradient(model: PreTrainedModel, logps: Tensor) -> tuple[Tensor, Tensor]:
    gradients = torch.autograd.grad(logps.sum(), [p for p in model.parameters() if p.requires_grad])
    return logps.detach().float(), torch.cat([g.flatten().float() for g in gradients])


def distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def close(what: str, found: Tensor, expected: Tensor) -> Row:
    off = distance(found, expected)
    return judged("packing", f"{what}, float32", f"{off:.1e} from padded", off <= WORST[torch.float32], distance=off)


def as_close(what: str, found: Tensor, plain: Tensor, truth: Tensor) -> Row:
    ours, theirs = distance(found, truth), distance(plain, truth)
    result = f"{ours:.1e} from float32, padded {theirs:.1e}"
    return judged("packing", f"{what}, bfloat16", result, ours <= WORST_RATIO * theirs, distance=ours, padded=theirs)
