"""The low-rank updates of a linear layer, all active adapters in one product.

    y = W x + sum_i s_i B_i A_i x  =  W x + [B_1, B_2, ...] (s * [A_1; A_2; ...] x)

PEFT adds up one adapter after the other, and scales each where it is as wide as the layer's output. Scaled where it is
as wide as the rank, and added by the product itself, the same numbers cost a fraction: what adapters add to the time of
a step is passes over such wide tensors, not arithmetic.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear

from modpo.forward.norms import attach_frozen_norms
from modpo.forward.projections import Projection, project

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

# Names of layers of one module that transformers' models call with the same tensor. Called otherwise, they are computed
# one by one, and as rightly.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def join_products(trainer: Trainer) -> None:
    """Let a trainer's model compute its adapters together and its frozen norms at once, where weights can be read
    without a call.

    DeepSpeed and FSDP gather weights as modules are called.
    """
    if not trainer.is_deepspeed_enabled and not trainer.is_fsdp_enabled:
        attach_joint_adapters(trainer.model)
        attach_frozen_norms(trainer.model)


def causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The language model itself: below its adapters, if it has some."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it, no dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def uncast_inputs(trainer: Trainer) -> AbstractContextManager[None]:
    """Within it, adapters get their input in the number format that it has.

    Under autocast PEFT would turn each adapter's input into float32, and autocast turn it back.
    """
    mixed = isinstance(trainer.model, PeftModel) and trainer.accelerator.mixed_precision != "no"
    return disable_input_dtype_casting(trainer.model, active=mixed)


def attach_joint_adapters(model: nn.Module) -> None:
    """Let each linear layer of a PEFT model add its active LoRA adapters up in one product, and layers that read the
    same input, such as q, k and v, be computed together.

    Where that would be something else than what PEFT computes (merged or disabled adapters, dropout, biases, DoRA and
    other variants) the layer's own forward does it. Attaching twice does nothing.
    """
    for module in model.modules():
        for names in SIBLINGS:
            layers = [getattr(module, name, None) for name in names]
            if all(type(layer) is Linear and "forward" not in layer.__dict__ for layer in layers):
                together = Together(layers)
                for layer in layers:
                    layer.__dict__["together"] = together
    for module in model.modules():
        if type(module) is Linear and "forward" not in module.__dict__:
            module.__dict__.setdefault("together", Together([module]))
            module.__dict__["forward"] = types.MethodType(_forward, module)


class Together:
    """Layers that are called with the same input: called with it, the first computes what the others will be asked."""

    def __init__(self, layers: list[Linear]) -> None:
        self._layers = layers
        self._outputs: dict[int, _Output] = {}  # not asked yet, by the layer's place

    def output(self, layer: Linear, x: Tensor) -> Tensor | None:
        """(..., in) -> (..., out) of one of the layers; None: one of them is not a frozen layer with adapters.

        Nor of a tensor of inference mode, of which nobody can tell whether it was changed in place.
        """
        if x.is_inference():
            return None
        place = next(i for i, each in enumerate(self._layers) if each is layer)
        kept = self._outputs.pop(place, None)
        if kept is None or kept.state != _state(layer, x, _tensors(layer, x)):
            self._outputs = self._computed(x)
            kept = self._outputs.pop(place, None)
        return None if kept is None else kept.output

    def _computed(self, x: Tensor) -> dict[int, _Output]:
        """Of all layers, if they can be computed together."""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        named = [_active(layer) for layer in self._layers]
        able = (_is_frozen(each, names, dtype) for each, names in zip(self._layers, named, strict=True))
        if not all(able):
            return {}
        As, layers = [], []
        for layer, names in zip(self._layers, named, strict=True):
            As += [_times(layer.lora_A[name].weight, layer.scaling[name]) for name in names]
            B = _joined([layer.lora_B[name].weight for name in names], dim=1).to(dtype)
            layers.append(Projection(layer.base_layer.weight, layer.base_layer.bias, B))
        outputs = project(x.to(dtype), _joined(As, dim=0).to(dtype), layers)
        self._drop_after_backward(outputs[0])
        if len(outputs) == 1:  # asked for now
            return {0: _Output(outputs[0], [], ())}
        tensors = [_tensors(layer, x) for layer in self._layers]
        states = (_state(layer, x, each) for layer, each in zip(self._layers, tensors, strict=True))
        return dict(enumerate(map(_Output, outputs, tensors, states)))

    def _drop_after_backward(self, output: Tensor) -> None:
        """Give nothing out whose graph has been run backward, and with it freed."""
        if len(self._layers) > 1 and output.grad_fn is not None:
            project_node, us = output.grad_fn.next_functions[0][0], weakref.ref(self)
            assert project_node is not None
            project_node.register_hook(lambda *_: _drop(us()))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_outputs": {}}  # what is between two calls is not copied


def _drop(together: Together | None) -> None:
    if together is not None:
        together._outputs = {}


class _Output(NamedTuple):
    """A layer's output that was not asked for yet, of tensors, kept so that no other gets the identity of one."""

    output: Tensor
    tensors: list[Tensor]
    state: tuple[Any, ...]


def _state(layer: Linear, x: Tensor, tensors: list[Tensor]) -> tuple[Any, ...]:
    """What a layer's output depends on, as it is now: changed in place, a tensor has another version."""
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    names = _adapters(layer)
    return (
        *(torch.is_grad_enabled(), autocast, *names, *(layer.scaling[name] for name in names)),
        *((id(each), None if each.is_inference() else each._version, each.requires_grad) for each in tensors),
    )


def _tensors(layer: Linear, x: Tensor) -> list[Tensor]:
    return [x, *_frozen(layer), *_factors(layer, _adapters(layer))]


def _adapters(layer: Linear) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _forward(self: Linear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """(..., in) -> (..., out)."""
    names = _active(self)
    if args or kwargs or not names:
        output: Tensor = type(self).forward(self, x, *args, **kwargs)
        return output
    together: Tensor | None = self.together.output(self, x)
    if together is not None:
        return together
    base: Tensor = self.base_layer(x)
    A = _joined([self.lora_A[name].weight for name in names], dim=0)  # (R, in)
    B = _joined([self.lora_B[name].weight for name in names], dim=1)  # (out, R)
    low = linear(self._cast_input_dtype(x, A.dtype), A)  # (..., R)
    low = _scaled(low, [len(self.lora_A[name].weight) for name in names], [self.scaling[name] for name in names])
    if torch.is_autocast_enabled(base.device.type) or base.dtype == low.dtype == B.dtype:
        return torch.addmm(base.flatten(0, -2), low.flatten(0, -2), B.t()).view(base.shape)
    return (base + linear(low, B)).to(base.dtype)


# A layer is pickled with the name of its forward: read again, it has its class's.
_forward.__name__ = "forward"


def _active(layer: Linear) -> list[str]:
    """Its active adapters; none where there are none, or where PEFT must add them up."""
    names = _adapters(layer)
    plain = not layer.disable_adapters and not layer.merged and all(_is_plain(layer, name) for name in names)
    return names if plain else []


def _is_frozen(layer: Linear, names: list[str], dtype: torch.dtype) -> bool:
    """Whether a layer is a frozen matrix of that number format with adapters, which autocast or nobody has to cast."""
    base, frozen, factors = layer.base_layer, _frozen(layer), _factors(layer, names)
    return (
        bool(names)
        and type(base) is nn.Linear
        and not ("forward" in base.__dict__ or base._forward_hooks or base._forward_pre_hooks)
        and all(weight.dtype == dtype and not weight.requires_grad for weight in frozen)
        and (torch.is_autocast_enabled(base.weight.device.type) or all(each.dtype == dtype for each in factors))
    )


def _frozen(layer: Linear) -> list[Tensor]:
    base = layer.base_layer
    return [base.weight] if base.bias is None else [base.weight, base.bias]


def _factors(layer: Linear, names: list[str]) -> list[Tensor]:
    return [half[name].weight for name in names for half in (layer.lora_A, layer.lora_B)]


def _times(weight: Tensor, scale: float) -> Tensor:
    return weight if scale == 1 else weight * scale


def _is_plain(layer: Linear, name: str) -> bool:
    """Whether an adapter of a layer adds s B A x and nothing else, by weights that can be read without a call."""
    drops = layer.training and getattr(layer.lora_dropout[name], "p", 0) > 0
    hooked = any(
        "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks
        for module in (layer.lora_A[name], layer.lora_B[name])
    )
    return not drops and not hooked and name not in layer.lora_variant and not layer.lora_bias[name]


def _scaled(low: Tensor, ranks: list[int], scales: list[float]) -> Tensor:
    """Each adapter's part of (..., R) times its scale. No tensor is made of the scales: that would wait for a GPU."""
    if all(scale == 1 for scale in scales):
        return low
    if len(scales) == 1:
        return low * scales[0]
    return torch.cat([part * scale for part, scale in zip(low.split(ranks, -1), scales, strict=True)], -1)


def _joined(weights: list[Tensor], dim: int) -> Tensor:
    """The adapters' A, (r_i, in), along dim 0 -> (R, in); their B, (out, r_i), along dim 1 -> (out, R)."""
    return weights[0] if len(weights) == 1 else torch.cat(weights, dim)
