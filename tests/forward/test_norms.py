"""Frozen norms against transformers' own: outputs and gradients."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from modpo.forward import norms
from modpo.forward.norms import attach_frozen_norms


def twins(kind: type[nn.Module], dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = kind(24).to(dtype).requires_grad_(False)
    nn.init.normal_(theirs.weight, 1, 0.5)
    ours = copy.deepcopy(theirs)
    attach_frozen_norms(ours)
    return ours, theirs


def ran(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    weights = torch.arange(y.numel()).view(y.shape).sin().to(y.dtype)
    y.backward(weights)
    assert x.grad is not None
    return y.detach(), x.grad


def is_ours(norm: nn.Module) -> bool:
    return "forward" in norm.__dict__


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen2RMSNorm])
@pytest.mark.parametrize("shape", [(5, 24), (1, 7, 24), (2, 3, 4, 24)])
def test_outputs_and_gradients_are_those_of_transformers(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    """Parts of 3 rows, of which the last may be shorter."""
    monkeypatch.setattr(norms, "ROWS", 3)
    ours, theirs = twins(kind, torch.float64)
    assert is_ours(ours)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(ran(ours, x), ran(theirs, x), rtol=1e-6, atol=1e-6)  # theirs computes in float32


def test_gradient_against_finite_differences() -> None:
    x, weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.randn(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: norms._FrozenNorm.apply(x, weight, 1e-5), x)


def test_bfloat16_outputs_are_equal_and_gradients_as_near_the_truth() -> None:
    ours, theirs = twins(LlamaRMSNorm, torch.bfloat16)
    x = torch.randn(40, 24).bfloat16()
    (found, slope), (expected, other) = ran(ours, x), ran(theirs, x)
    assert torch.equal(found, expected)
    _, exact = ran(copy.deepcopy(theirs).double(), x.double())
    assert (slope - exact).norm() <= 1.05 * (other - exact).norm()
    assert slope.dtype == torch.bfloat16


@pytest.mark.parametrize("why", ["a trained weight", "another number format"])
def test_others_are_left_to_transformers(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    ours, theirs = twins(LlamaRMSNorm, torch.float32)
    x = torch.randn(3, 24)
    if why == "a trained weight":
        ours.requires_grad_()
    else:
        x = x.bfloat16()
    monkeypatch.setattr(norms._FrozenNorm, "apply", lambda *_: pytest.fail("frozen"))
    assert torch.equal(ours(x), theirs(x))


def test_a_norm_that_computes_otherwise_is_not_touched() -> None:
    """Gemma multiplies by 1 + w."""
    assert not is_ours(twins(GemmaRMSNorm, torch.float32)[0])


def test_copied_and_pickled_it_runs_its_own_weight() -> None:
    ours, theirs = twins(LlamaRMSNorm, torch.float32)
    x = torch.randn(3, 24)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for other in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert torch.equal(other(x), theirs(x))
        other.weight.zero_()
        assert not other(x).any()
        assert torch.equal(ours(x), theirs(x))
