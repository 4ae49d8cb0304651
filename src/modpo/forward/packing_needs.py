"""What stands in the way of packed rows whatever a model's weights, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modpo.base.errors import InputError, Problem
from modpo.base.progress import say_once
from modpo.forward.rope import fixed_up_to

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedConfig

ATTENTION_DROPOUT = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")  # in configurations
Packing = bool | str  # as it is asked for: True, False, or AUTO of `modpo.experiment.sections`


@dataclass(frozen=True)
class Needs:
    """How a model is to be read, besides what it is itself.

    Attributes:
        longest: tokens of the longest prompt with its response; None: no limit.
        neftune: noise of the embeddings in training (`neftune_noise_alpha`).
        adapters: that are still to be put on the model.
        dropout: whether training drops what the model's configuration says (`disable_dropout` is false).
    """

    longest: int | None = None
    neftune: float | None = None
    adapters: tuple[PeftConfig, ...] = ()
    dropout: bool = False

    def obstacle(self, config: PreTrainedConfig) -> str | None:
        """What stands in the way of packed rows whatever the model's weights; None: nothing."""
        limit = fixed_up_to(config)
        if limit is not None and (self.longest is None or self.longest > limit):
            return beyond(limit)
        if self.dropout and any(getattr(config.get_text_config(), name, 0) for name in ATTENTION_DROPOUT):
            return "its attention has dropout (disable_dropout is false)"
        if self.neftune:
            return "the noise of neftune_noise_alpha depends on how long a row is"
        return adapter_obstacle(self.adapters)


def adapter_obstacle(adapters: Iterable[PeftConfig]) -> str | None:
    """Which adapter, of those on a model or to be put on it, stands in the way."""
    for adapter in adapters:
        if adapter.is_prompt_learning:
            return f"its adapter ({adapter.peft_type.value}) puts tokens of its own before every row"
        if getattr(adapter, "alora_invocation_tokens", None):  # looked for in each row of `input_ids`
            return "its adapter (aLoRA) acts behind certain tokens of a row"
    return None


def unpackable(config: PreTrainedConfig, reason: str) -> InputError:
    """The refusal of a model that was to be read packed."""
    return InputError(
        Problem(f"model ({config.model_type})", "packing", f"cannot read packed rows: {reason}", "set `packing: false`")
    )


def beyond(limit: int) -> str:
    """The obstacle of a model that reads a row in another way where one beside it is longer than `limit` tokens."""
    return f"its rotary frequencies depend on the longest row, where that may be beyond {limit} tokens (max_length)"


def say_padded(reason: str) -> None:
    """Tell the user, once, why rows are padded."""
    say_once(f"packing: rows are padded, since the model cannot read packed ones: {reason}")
