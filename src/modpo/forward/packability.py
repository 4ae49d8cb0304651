"""Which models can read packed rows: known by their configuration, their adapters, and by reading one.

With `packing: auto` a model that cannot is read padded; with `packing: true` it is refused.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from torch import Tensor

from modpo.base.text import first_line
from modpo.experiment.sections import AUTO
from modpo.forward.attention import packed_attention
from modpo.forward.logprobs import attach_packed_forward, detach_packed_forward, packed_logps, padded_logps
from modpo.forward.low_rank import causal_lm, evaluating
from modpo.forward.packing import pack
from modpo.forward.packing_needs import Needs, Packing, adapter_obstacle, say_padded, unpackable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative to a response's log-prob
PROBE_TOLERANCE_16_BIT = 0.02  # rounding makes 0.2 %; everything attending to everything before it 6 %
LARGE_LOGIT = 1000.0  # beyond what any cap leaves as it is
PACKABLE_LAYER_TYPES = {"full_attention"}


def choose_packing(asked: Packing, model: PreTrainedModel | PeftModel, needs: Needs) -> bool:
    """Whether a model is to be read packed: where `asked` leaves it open, if it can be; said where it cannot.

    Raises:
        InputError: it is to be, and cannot; `packing: false` is the way out.
    """
    if asked is False:
        return False
    reason = needs.obstacle(model.config) or packing_obstacle(model)
    if reason and asked != AUTO:
        raise unpackable(model.config, reason)
    if reason:
        say_padded(reason)
    return not reason


def require_packable(model: PreTrainedModel | PeftModel) -> None:
    """Check that a model, as it is, can read packed rows.

    Raises:
        InputError: naming what stands in the way; `packing: false` is the way out.
    """
    if reason := packing_obstacle(model):
        raise unpackable(model.config, reason)


def packing_obstacle(model: PreTrainedModel | PeftModel) -> str | None:
    """Why a model, as it is, cannot read packed rows; None: it can, and is ready to."""
    inner = causal_lm(model)
    adapters = model.peft_config.values() if isinstance(model, PeftModel) else ()
    attached = getattr(inner.forward, "takes_packed_rows", False)
    reason = known_obstacle(inner) or adapter_obstacle(adapters) or _probe(model)
    if reason and not attached:
        detach_packed_forward(inner)
    return reason


def known_obstacle(model: PreTrainedModel) -> str | None:
    """What is known without the model's weights, which may lie on the meta device."""
    config = model.config.get_text_config()
    if other_layers := set(getattr(config, "layer_types", None) or ()) - PACKABLE_LAYER_TYPES:
        return f"it has layers of type {', '.join(sorted(other_layers))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"its attention slides over a window of {config.sliding_window} tokens"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention does not go through transformers' AttentionInterface"
    return None


@torch.no_grad()
def _probe(model: PreTrainedModel | PeftModel) -> str | None:
    """Read a tiny row packed and padded: catches ignored position ids and attention of another kind."""
    inner = causal_lm(model)
    vocabulary = inner.config.get_text_config().vocab_size
    tokens = (vocabulary // 3 + 7 * i for i in itertools.count())  # words, not the special tokens at either end

    def text(length: int) -> list[int]:
        return [token % vocabulary for token in itertools.islice(tokens, length)]

    prompts = [text(6), text(1)]
    responses = [[text(24), text(16)], [text(24), text(16)]]  # long enough for rounding to average out
    try:
        with evaluating(model):
            expected = padded_logps(model, prompts, responses)
            if not _head_gives_logits(inner, torch.tensor([prompts[0]], device=expected.device)):
                return "it scales or caps the logits behind its head"
            attach_packed_forward(inner)
            with packed_attention(inner):
                found = packed_logps(model, pack(prompts, responses).to(expected.device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # models are of all kinds, and so is what they raise
        return first_line(error).partition("; fix:")[0]
    tolerance = PROBE_TOLERANCE.get(inner.dtype, PROBE_TOLERANCE_16_BIT)
    off = ((found - expected).abs() / expected.abs().clamp(min=1)).mean().item()
    return f"its log-probs come out {off:.1%} off" if off > tolerance else None


def _head_gives_logits(model: PreTrainedModel, input_ids: Tensor) -> bool:
    """Whether the logits of a text, (1, T), are the head's output and nothing more: the same numbers in any dtype.

    Looked at twice, as they are and made large: a cap bends small logits by less than rounding does.
    """
    head = model.get_output_embeddings()
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    expected = head(hidden)
    factor = LARGE_LOGIT / expected.abs().amax().item() if expected.any() else 1.0
    seen: list[Tensor] = []
    hooks = [
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * factor, *inputs[1:])),
        head.register_forward_hook(lambda _module, _inputs, output: seen.append(output)),
    ]
    try:
        large = model(input_ids=input_ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    plain = model(input_ids=input_ids, use_cache=False).logits
    return _close(plain, expected) and bool(seen) and _close(large, seen[-1])


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-2, atol=1e-3, equal_nan=True)
