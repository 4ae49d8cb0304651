"""Active adapters added up in one product, against PEFT's own forward: outputs and gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import Linear
from torch import Tensor, nn

from modpo.forward import low_rank
from modpo.forward.low_rank import attach_joint_adapters

SCALES = {"default": 0.7, "second": -0.4, "third": 1.9}


class Layers(nn.Module):
    """Two linear layers, the second with a bias."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.up = nn.Linear(6, 10, bias=False, dtype=dtype)
        self.down = nn.Linear(10, 5, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def adapted(adapters: int, dtype: torch.dtype = torch.float32, **settings: Any) -> PeftModel:
    torch.manual_seed(0)
    model: Any = None
    for n, name in enumerate(list(SCALES)[:adapters]):
        config = LoraConfig(r=2 + n, lora_alpha=3, target_modules=["up", "down"], init_lora_weights=False, **settings)
        if n == 0:
            model = get_peft_model(Layers(dtype), config)
        else:
            model.add_adapter(name, config)
    model.base_model.set_adapter(list(SCALES)[:adapters])
    for layer in layers(model):
        for name in list(SCALES)[:adapters]:
            layer.set_scale(name, SCALES[name])
    return model


def layers(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, Linear))


def twins(adapters: int, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[PeftModel, PeftModel]:
    ours = adapted(adapters, dtype, **settings)
    theirs = copy.deepcopy(ours)
    attach_joint_adapters(ours)
    return ours, theirs


def ran(model: PeftModel, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of all adapters and of the input."""
    x = x.clone().requires_grad_()
    output = model(x)
    output.float().square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads
    assert x.grad is not None
    return output.detach(), {**grads, "input": x.grad}


@pytest.mark.parametrize("adapters", [1, 2, 3])
@pytest.mark.parametrize("shape", [(7, 6), (1, 7, 6), (2, 3, 4, 6)])
def test_outputs_and_gradients_are_those_of_peft(adapters: int, shape: tuple[int, ...]) -> None:
    ours, theirs = twins(adapters)
    x = torch.randn(shape)
    torch.testing.assert_close(ran(ours, x), ran(theirs, x))


@pytest.mark.parametrize("adapters", [1, 2])
@pytest.mark.parametrize("way", ["autocast", "autocast, inputs left alone", "no autocast", "bfloat16 adapters"])
def test_in_mixed_precision(adapters: int, way: str) -> None:
    """As close to the same numbers in float32 as PEFT is, outputs and gradients, and in PEFT's types."""
    exact = adapted(adapters)
    ours, theirs = (adapted(adapters, torch.bfloat16) for _ in range(2))
    attach_joint_adapters(ours)
    state = {name: value.bfloat16().float() for name, value in exact.state_dict().items()}
    for model in (exact, ours, theirs):
        if way == "bfloat16 adapters" and model is not exact:
            model.bfloat16()
        model.load_state_dict(state)
    x = torch.randn(4, 7, 6).bfloat16()
    true = ran(exact, x.float())
    found = []
    for model in (ours, theirs):
        left_alone = disable_input_dtype_casting(model, active=way == "autocast, inputs left alone")
        with left_alone, torch.autocast("cpu", torch.bfloat16, enabled=way.startswith("autocast")):
            found.append(ran(model, x))
    off = [max(relative(a, b) for a, b in zip(tensors(one), tensors(true), strict=True)) for one in found]
    assert off[0] < max(1.5 * off[1], 0.02)
    assert [t.dtype for t in tensors(found[0])] == [t.dtype for t in tensors(found[1])]


def tensors(one: tuple[Tensor, dict[str, Tensor]]) -> list[Tensor]:
    return [one[0], *one[1].values()]


def relative(found: Tensor, true: Tensor) -> float:
    return float((found.float() - true).norm() / true.norm())


def test_the_joint_product_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = twins(2)
    monkeypatch.setattr(Linear, "forward", lambda *args, **kwargs: pytest.fail("PEFT's forward"))
    ours(torch.randn(3, 6))


def test_scales_are_read_at_each_call() -> None:
    ours, theirs = twins(2)
    for layer in [*layers(ours), *layers(theirs)]:
        layer.set_scale("second", 3.0)
    x = torch.randn(3, 6)
    torch.testing.assert_close(ours(x), theirs(x))


class Attending(nn.Module):
    """What reads two tensors, by names of layers that are computed together."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(6, 6, bias=False) for _ in range(3))

    def forward(self, x: Tensor, o: Tensor) -> Tensor:
        return self.q_proj(x) + self.k_proj(o) + self.v_proj(o)


@pytest.fixture
def attending() -> tuple[PeftModel, PeftModel]:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    ours = get_peft_model(Attending(), config).double()
    theirs = copy.deepcopy(ours)
    attach_joint_adapters(ours)
    return ours, theirs


def slopes(model: PeftModel, x: Tensor, o: Tensor) -> list[Tensor]:
    """The output, and the gradients of all adapters."""
    model.zero_grad()
    output = model(x, o)
    output.square().sum().backward()
    return [output.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("change", ["nothing", "lora_B", "scale", "input"])
@pytest.mark.parametrize("grad", [True, False], ids=["after a backward pass", "after a pass without gradients"])
def test_what_a_pass_did_not_ask_for_is_not_given_to_the_next(attending, change: str, grad: bool) -> None:
    """The key of `o` makes its query be computed too, which nobody asks for before the next pass."""
    x, o = torch.randn(2, 3, 6, dtype=torch.float64)
    found = []
    for model in attending:
        one, other = x.clone(), o.clone()
        with torch.set_grad_enabled(grad):
            before = model(one, other)
        if grad:
            before.square().sum().backward()
        with torch.no_grad():
            for layer in layers(model):
                if change == "lora_B":
                    layer.lora_B["default"].weight.mul_(3)
                elif change == "scale":
                    layer.set_scale("default", 2.5)
            if change == "input":
                other.add_(1)
        found.append(slopes(model, other, other))
    torch.testing.assert_close(*found)
    assert len(found[0]) == 7


def test_siblings_of_one_input_are_one_product(attending, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    project = low_rank.project
    monkeypatch.setattr(low_rank, "project", lambda *given: calls.append(1) or project(*given))
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(slopes(attending[0], x, x), slopes(attending[1], x, x))
    assert len(calls) == 1


def test_what_is_more_than_low_rank_is_left_to_peft() -> None:
    x = torch.randn(3, 6)
    for settings in ({"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}):
        ours, theirs = twins(1, **settings)
        torch.manual_seed(1)
        expected = theirs(x)
        torch.manual_seed(1)
        assert torch.equal(ours(x), expected), settings


def test_dropout_that_is_off_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """In evaluation, and in training with a share of 0, as TRL sets it."""
    ours, theirs = twins(2, lora_dropout=0.5)
    x = torch.randn(3, 6)
    expected = theirs.eval()(x)
    monkeypatch.setattr(Linear, "forward", lambda *args, **kwargs: pytest.fail("PEFT's forward"))
    torch.testing.assert_close(ours.eval()(x), expected)
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(ours.train()(x), expected)


def test_adapters_that_are_not_active_add_nothing() -> None:
    ours, theirs = twins(3)
    x = torch.randn(3, 6)
    for active in (["second"], ["third", "default"]):
        for model in (ours, theirs):
            model.base_model.set_adapter(active)
        torch.testing.assert_close(ours(x), theirs(x))


def test_factors_that_are_hooked_are_called() -> None:
    """Who hooks them gathers, moves or watches what a product of the bare weights would miss."""
    ours, _ = twins(1)
    called = []
    next(layers(ours)).lora_A["default"].register_forward_pre_hook(lambda *_: called.append(1))
    ours(torch.randn(3, 6))
    assert called == [1]


def test_a_model_can_be_pickled() -> None:
    ours, _ = twins(2)
    x = torch.randn(3, 6)
    torch.testing.assert_close(pickle.loads(pickle.dumps(ours))(x), ours(x))


def test_disabled_and_merged_adapters() -> None:
    ours, theirs = twins(2)
    x = torch.randn(3, 6)
    with ours.disable_adapter(), theirs.disable_adapter():
        assert torch.equal(ours(x), theirs(x))
    before = ours(x)
    ours.merge_adapter()
    torch.testing.assert_close(ours(x), before)
    ours.unmerge_adapter()
    torch.testing.assert_close(ours(x), before)


def test_a_copy_runs_its_own_weights() -> None:
    ours, _ = twins(1)
    x = torch.randn(3, 6)
    before, other = ours(x), copy.deepcopy(ours)
    with torch.no_grad():
        for layer in layers(other):
            layer.lora_B["default"].weight.zero_()
    torch.testing.assert_close(ours(x), before)
    assert not torch.allclose(other(x), before)
    merged = copy.deepcopy(ours).merge_and_unload()
    torch.testing.assert_close(merged(x), before)
