"""Dropout that is no `nn.Dropout` layer: a rate in a module's attribute, and a function that reads it."""

from __future__ import annotations

from torch import nn


def disable_functional_dropout(model: nn.Module) -> None:
    """Set such rates to 0, as in Llama's attention or OPT's layers. TRL turns off `nn.Dropout` layers only."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
