"""The head against plain autograd, and what else it reads of the same logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from modpo.forward import head
from modpo.forward.head import TokenReadings, head_logps, head_readings, logits_readings


@pytest.fixture(params=[1 << 24, 60], ids=["one chunk", "chunks of 3 positions"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", request.param)


def head_tensors(*, bias: bool, train_head: bool) -> dict[str, Tensor | None]:
    """11 positions, 7 wide, 20 words."""
    generator = torch.Generator().manual_seed(5)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return {
        "hidden": normal(11, 7).requires_grad_(),
        "weight": normal(20, 7).requires_grad_(train_head),
        "bias": normal(20).requires_grad_(train_head) if bias else None,
    }


def plain_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    return nn.functional.linear(hidden, weight, bias).log_softmax(-1).gather(1, labels[:, None])[:, 0]


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("train_head", [True, False], ids=["trained head", "frozen head"])
def test_head_equals_plain_log_softmax(bias: bool, train_head: bool):
    tensors = head_tensors(bias=bias, train_head=train_head)
    labels = torch.arange(11) * 7 % 20
    slope = torch.linspace(-2, 3, 11, dtype=torch.float64)
    found, expected = head_logps(**tensors, labels=labels), plain_head(**tensors, labels=labels)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    trained = [tensor for tensor in tensors.values() if tensor is not None and tensor.requires_grad]
    assert len(trained) == (1 if not train_head else 2 + bias)
    fast, slow = (torch.autograd.grad((slope * logps).sum(), trained) for logps in (found, expected))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_head_without_gradients():
    tensors = head_tensors(bias=True, train_head=True)
    labels = torch.zeros(11, dtype=torch.long)
    with torch.no_grad():
        found = head_logps(**tensors, labels=labels)
    assert not found.requires_grad
    torch.testing.assert_close(found, plain_head(**tensors, labels=labels).detach())


def test_head_in_bfloat16_takes_the_softmax_in_float32():
    """One word of 20 000 with equal logits has log-prob -log 20000; a bfloat16 log-sum-exp would be off by 0.02."""
    hidden, weight = torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(20_000, 4, dtype=torch.bfloat16)
    logps = head_logps(hidden, weight, None, torch.tensor([0, 19_999]))
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, torch.full((2,), -9.903487552536127), rtol=1e-6, atol=0)


# --- what else it reads ---------------------------------------------------------------------------------------------


def test_readings_by_hand():
    """Logits (log 2, 0, 0): p = (1/2, 1/4, 1/4), entropy 3/2 log 2, mean (log 2) / 3; the first word is the likeliest.

    Logits (1, 1, 1): all tie, and none is likelier than another.
    """
    logits = torch.tensor([[math.log(2), 0, 0], [math.log(2), 0, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.float64)
    found = logits_readings(logits, torch.tensor([0, 2, 0, 1]))
    torch.testing.assert_close(found.logps.exp(), torch.tensor([1 / 2, 1 / 4, 1 / 3, 1 / 3], dtype=torch.float64))
    entropies = [1.5 * math.log(2)] * 2 + [math.log(3)] * 2
    torch.testing.assert_close(found.entropy, torch.tensor(entropies, dtype=torch.float64))
    torch.testing.assert_close(found.mean_logit, torch.tensor([math.log(2) / 3] * 2 + [1.0] * 2, dtype=torch.float64))
    assert found.is_top.tolist() == [True, False, True, True]


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("read", ["trained head", "frozen head", "no gradient"])
def test_readings_equal_those_of_whole_logits(bias: bool, read: str):
    """Of the labels some are the likeliest words. Log-probs and their gradient are as without readings."""
    tensors = head_tensors(bias=bias, train_head=read == "trained head")
    logits = nn.functional.linear(tensors["hidden"], tensors["weight"], tensors["bias"]).detach()
    labels = torch.where(torch.arange(11) % 3 == 0, logits.argmax(-1), torch.arange(11))
    with torch.set_grad_enabled(read != "no gradient"):
        found, alone = head_readings(**tensors, labels=labels), head_logps(**tensors, labels=labels)
    for name, expected in logits_readings(logits, labels)._asdict().items():
        torch.testing.assert_close(getattr(found, name).detach(), expected, rtol=1e-12, atol=1e-12, msg=name)
    assert 0 < found.is_top.sum() < 11
    assert [value.requires_grad for value in found] == [read != "no gradient", False, False, False]
    assert torch.equal(found.logps, alone)
    if read != "no gradient":
        trained = [tensor for tensor in tensors.values() if tensor is not None and tensor.requires_grad]
        fast, slow = (torch.autograd.grad(logps.square().sum(), trained) for logps in (found.logps, alone))
        assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))


@pytest.mark.parametrize("train_head", [True, False], ids=["trained head", "frozen head"])
def test_readings_in_bfloat16_are_near(train_head: bool):
    """Rounding of single numbers is averaged out: the mean entropy of 600 positions is exact to a part in 1000."""
    generator = torch.Generator().manual_seed(3)
    exact = [torch.randn(600, 64, generator=generator), torch.randn(500, 64, generator=generator) / 4]
    hidden, weight = (tensor.bfloat16().requires_grad_() for tensor in exact)
    weight.requires_grad_(train_head)
    labels = torch.arange(600) % 500
    found = head_readings(hidden, weight, None, labels)
    expected: TokenReadings = logits_readings((hidden.float() @ weight.float().T).detach(), labels)
    assert found.entropy.dtype == found.mean_logit.dtype == torch.float32
    assert found.entropy.mean().item() == pytest.approx(expected.entropy.mean().item(), rel=1e-3)
    torch.testing.assert_close(found.mean_logit, expected.mean_logit, rtol=1e-4, atol=1e-4)
