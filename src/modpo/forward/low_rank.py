"""The low-rank updates of a linear layer, all active adapters in one product.

    y = W x + sum_i s_i B_i A_i x  =  W x + [B_1, B_2, ...] (s * [A_1; A_2; ...] x)

PEFT adds up one adapter after the other, and scales each where it is as wide as the layer's output. Scaled where it is
as wide as the rank, and added by the product itself, the same numbers cost a fraction: what adapters add to the time of
a step is passes over such wide tensors, not arithmetic.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.functional import linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer


def join_adapters(trainer: Trainer) -> None:
    """Let a trainer's model add its active adapters up in one product, where weights can be read without a call.

    DeepSpeed and FSDP gather weights as modules are called.
    """
    if not trainer.is_deepspeed_enabled and not trainer.is_fsdp_enabled:
        attach_joint_adapters(trainer.model)


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
    """Let each linear layer of a PEFT model add its active LoRA adapters up in one product.

    Where that would be something else than what PEFT computes (merged or disabled adapters, dropout, biases, DoRA and
    other variants) the layer's own forward does it. Attaching twice does nothing.
    """
    for module in model.modules():
        if type(module) is Linear and "forward" not in module.__dict__:
            module.__dict__["forward"] = types.MethodType(_forward, module)


def _forward(self: Linear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """(..., in) -> (..., out)."""
    names = [name for name in self.active_adapters if name in self.lora_A]
    low_rank = names and not self.disable_adapters and not self.merged and all(_is_plain(self, name) for name in names)
    if args or kwargs or not low_rank:
        output: Tensor = type(self).forward(self, x, *args, **kwargs)
        return output
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
