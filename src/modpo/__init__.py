"""Align one language model to several objectives: multi-objective direct preference optimisation (MODPO).

The public names are below. They are imported when first used: `import modpo` alone loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modpo.experiment.file import read_experiment
    from modpo.policies.steered_front import load_front
    from modpo.training.config import MODPOConfig
    from modpo.training.loss import effective_beta, modpo_loss, regression_loss, shift_reference
    from modpo.training.trainer import MODPOTrainer

    __version__: str

_HOMES = {
    "MODPOConfig": "modpo.training.config",
    "MODPOTrainer": "modpo.training.trainer",
    "effective_beta": "modpo.training.loss",
    "load_front": "modpo.policies.steered_front",
    "modpo_loss": "modpo.training.loss",
    "read_experiment": "modpo.experiment.file",
    "regression_loss": "modpo.training.loss",
    "shift_reference": "modpo.training.loss",
}

__all__ = [
    "MODPOConfig",
    "MODPOTrainer",
    "__version__",
    "effective_beta",
    "load_front",
    "modpo_loss",
    "read_experiment",
    "regression_loss",
    "shift_reference",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from modpo.base.version import installed_version

        value = installed_version()
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'modpo' has no attribute {name!r}")
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
