"""Rotary embeddings whose frequencies depend on the longest sequence of a forward pass.

transformers decorates them with `dynamic_rope_update`: `longrope` (Phi-3) takes other frequencies for all rows as soon
as one of them is longer than the model's original length, `dynamic` (NTK) stretches them with the longest row, and
keeps what it stretched for the next forward. So the numbers of a row would depend on the rows that it is read beside.
Up to that length nothing depends on anything; rows beyond it are read with none but rows of the very same length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

# Rope types of transformers whose frequencies are fixed once the model is there. Any other may look at the row.
FIXED = {"default", "linear", "yarn", "llama3", "proportional", "mrope"}
# Where a configuration says how long rows may get before frequencies change.
ORIGINAL, LONGEST = "original_max_position_embeddings", "max_position_embeddings"


def fixed_up_to(config: PreTrainedConfig) -> int | None:
    """Up to how many tokens a row is read the same whatever the others; None: however many, as in most models."""
    config = config.get_text_config()
    return min((_limit(config, kind, rope) for kind, rope in _ropes(config) if kind not in FIXED), default=None)


def _limit(config: PreTrainedConfig, kind: str, rope: Mapping[str, Any]) -> int:
    longest = getattr(config, LONGEST, None)
    if kind == "longrope":
        longest = rope.get(ORIGINAL) or getattr(config, ORIGINAL, longest)
    return int(longest or 0)


def _ropes(config: PreTrainedConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each kind of rope that a model has, and its settings; some models have one for each type of layer."""
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in settings.values() if isinstance(value, Mapping)]
    for rope in nested or [settings]:
        if kind := rope.get("rope_type", rope.get("type")):
            yield str(kind), rope


def read_together(lengths: Sequence[int], limit: int | None) -> list[list[int]]:
    """Places of rows that may share a forward pass: all up to the limit, and beyond it those of one length.

    Args:
        limit: see `fixed_up_to`.
    """
    passes: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        passes.setdefault(0 if limit is None or length <= limit else length, []).append(place)
    return list(passes.values())


def forget_longer_rows(model: nn.Module) -> None:
    """Let a forward pass start from the model's own frequencies, whatever was read before."""
    for module in model.modules():
        if "max_seq_len_cached" in vars(module) and hasattr(module, "original_max_seq_len"):
            for name in list(vars(module)):
                if name.endswith("max_seq_len_cached"):
                    _restore(module, name.removesuffix("max_seq_len_cached"))


def _restore(module: nn.Module, prefix: str) -> None:
    """Undo what `dynamic_rope_update` keeps of longer rows, of one type of layer."""
    original = getattr(module, f"{prefix}original_inv_freq", None)
    frequencies = getattr(module, f"{prefix}inv_freq", None)
    if original is not None and frequencies is not None:
        ours = original.to(frequencies.device, copy=True)  # `longrope` writes into it
        module.register_buffer(f"{prefix}inv_freq", ours, persistent=False)
        setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
