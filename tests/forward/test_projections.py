"""Adapted layers of one input, computed together, against the same products one by one."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from modpo.forward import low_rank
from modpo.forward.low_rank import attach_joint_adapters
from modpo.forward.projections import Projection, project


class Attention(nn.Module):
    """Layers named as transformers names them, called in any order with any tensors."""

    def __init__(self) -> None:
        super().__init__()
        for name, width, bias in (("q_proj", 8, True), ("k_proj", 4, False), ("v_proj", 4, True)):
            setattr(self, name, nn.Linear(6, width, bias=bias))

    def forward(self, x: Tensor, names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"), other: Tensor | None = None):
        """The layers' outputs side by side; the last of the layers reads `other`."""
        inputs = [x] * (len(names) - 1) + [x if other is None else other]
        return torch.cat([getattr(self, name)(each) for name, each in zip(names, inputs, strict=True)], -1)


def twins(ranks: dict[str, int] | None = None) -> tuple[PeftModel, PeftModel]:
    torch.manual_seed(0)
    config = LoraConfig(
        r=2,
        lora_alpha=3,
        rank_pattern=ranks or {},
        target_modules=["q_proj", "k_proj", "v_proj"],
        init_lora_weights=False,
    )
    theirs = get_peft_model(Attention().double(), config)
    theirs.double()
    ours = copy.deepcopy(theirs)
    attach_joint_adapters(ours)
    return ours, theirs


def ran(model: PeftModel, *inputs: Tensor, **settings) -> dict[str, Tensor]:
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    y = model(inputs[0], **settings, **({"other": inputs[1]} if len(inputs) > 1 else {}))
    (y.sin() * torch.arange(y.shape[-1])).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"y": y.detach(), **{f"x{i}": x.grad for i, x in enumerate(inputs)}, **grads}


@pytest.mark.parametrize("ranks", [{}, {"k_proj": 3, "v_proj": 1}], ids=["one rank", "several ranks"])
@pytest.mark.parametrize("shape", [(5, 6), (1, 7, 6)])
def test_layers_of_one_input_equal_peft(shape: tuple[int, ...], ranks: dict[str, int]) -> None:
    ours, theirs = twins(ranks)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(ran(ours, x), ran(theirs, x))


@pytest.mark.parametrize("names", itertools.permutations(("q_proj", "k_proj", "v_proj")))
def test_in_any_order(names: tuple[str, ...]) -> None:
    ours, theirs = twins()
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(ran(ours, x, names=names), ran(theirs, x, names=names))


@pytest.mark.parametrize("names", [("q_proj",), ("k_proj", "v_proj"), ("q_proj", "q_proj", "k_proj")])
def test_layers_that_are_not_called_or_called_twice(names: tuple[str, ...]) -> None:
    ours, theirs = twins()
    for _ in range(2):  # what the first call leaves behind is not given to the second
        x = torch.randn(3, 6, dtype=torch.float64)
        found, expected = ran(ours, x, names=names), ran(theirs, x, names=names)
        torch.testing.assert_close(found["y"], expected["y"])
        torch.testing.assert_close(found["x0"], expected["x0"])


def test_layers_of_different_inputs() -> None:
    """As in attention to another text."""
    ours, theirs = twins()
    x, other = torch.randn(2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(ran(ours, x, other), ran(theirs, x, other))


def test_checkpointed_layers() -> None:
    ours, theirs = twins()
    for model in (ours, theirs):
        inner = model.get_base_model()
        plain = inner.forward
        inner.forward = lambda x, plain=plain: checkpoint(plain, x, use_reentrant=False)
    for _ in range(2):
        x = torch.randn(3, 6, dtype=torch.float64)
        torch.testing.assert_close(ran(ours, x), ran(theirs, x))


def test_one_product_for_all_three(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = twins()
    calls: list[int] = []

    def counted(x: Tensor, A: Tensor, layers: list[Projection]) -> tuple[Tensor, ...]:
        calls.append(len(layers))
        return project(x, A, layers)

    monkeypatch.setattr(low_rank, "project", counted)
    ours(torch.randn(3, 6, dtype=torch.float64))
    assert calls == [3]


def test_nothing_is_held_after_the_last_layer() -> None:
    ours, _ = twins()
    ours(torch.randn(3, 6, dtype=torch.float64))
    together = ours.get_base_model().q_proj.together
    assert not together._outputs


def test_trained_base_weights_get_their_gradient() -> None:
    ours, theirs = twins()
    for model in (ours, theirs):
        model.get_base_model().k_proj.base_layer.weight.requires_grad_()
    x = torch.randn(3, 6, dtype=torch.float64)
    found, expected = ran(ours, x), ran(theirs, x)
    assert any(name.endswith("k_proj.base_layer.weight") for name in expected)
    torch.testing.assert_close(found, expected)


def test_gradients_against_finite_differences() -> None:
    torch.manual_seed(0)
    W = [torch.randn(width, 5, dtype=torch.float64) for width in (4, 3)]
    b = torch.randn(4, dtype=torch.float64)
    x, A, B0, B1 = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((6, 5), (3, 5), (4, 2), (3, 1)))

    def function(x: Tensor, A: Tensor, B0: Tensor, B1: Tensor) -> tuple[Tensor, ...]:
        return project(x, A, [Projection(W[0], b, B0), Projection(W[1], None, B1)])

    assert torch.autograd.gradcheck(function, (x, A, B0, B1))
    expected = (linear(x, W[0], b) + x @ A[:2].T @ B0.T, linear(x, W[1]) + x @ A[2:].T @ B1.T)
    torch.testing.assert_close(function(x, A, B0, B1), expected)
