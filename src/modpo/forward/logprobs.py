"""Log-probabilities of responses under a model: packed (fast) and padded (plain).

Both give log pi(y|x) summed over the response's tokens, in nats, float32 at least.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from modpo.base.costs import count
from modpo.forward.head import head_logps, head_readings, logits_readings, wide
from modpo.forward.packing import PackedRow
from modpo.forward.packing_needs import beyond, unpackable
from modpo.forward.rope import fixed_up_to, forget_longer_rows, read_together


def packed_logps(model: nn.Module, row: PackedRow) -> Tensor:
    """Log-probs of the M responses of a packed row, (M,).

    `model` is a causal language model, bare or wrapped (PEFT, DDP, FSDP), whose innermost model has been through
    `attach_packed_forward`, within `packed_attention`.
    """
    return row.sum_by_response(packed_token_logps(model, row))


def packed_token_logps(model: nn.Module, row: PackedRow) -> Tensor:
    """Log-probs of the N response tokens of a packed row, (N,), in the order of its `labels`; see `packed_logps`."""
    logps: Tensor = model(packed_row=row)
    count_pass()
    return logps


def attach_packed_forward(model: PreTrainedModel) -> None:
    """Let `model(packed_row=row)` return its tokens' log-probs, (N,); every other call stays as it was.

    With `readings=True` too it returns `TokenReadings`.

    The forward itself is taken over, rather than the model taken apart, because the wrappers of distributed training
    act on calls of the whole model. Attaching twice does nothing.
    """
    if getattr(model.forward, "takes_packed_rows", False):
        return
    plain_forward = model.forward

    @wraps(type(model).forward)  # `generate` reads the signature to know which inputs to prepare
    def forward(
        self: PreTrainedModel, *args: Any, packed_row: PackedRow | None = None, readings: bool = False, **kwargs: Any
    ) -> Any:
        if packed_row is None:
            return plain_forward(*args, **kwargs)
        _require_fixed_rope(self, packed_row)
        hidden = self.base_model(
            input_ids=packed_row.input_ids,
            position_ids=packed_row.position_ids,
            use_cache=False,
            packed=packed_row.layout,
        ).last_hidden_state[0]  # (T, hidden size)
        read_head = head_readings if readings else head_logps
        head, hidden = self.get_output_embeddings(), hidden[packed_row.predictors]
        if has_plain_weights(head):
            return read_head(hidden, head.weight, head.bias, packed_row.labels)
        found = logits_readings(head(hidden), packed_row.labels)
        return found if readings else found.logps

    forward.__dict__["takes_packed_rows"] = True
    model.forward = types.MethodType(forward, model)


def _require_fixed_rope(model: PreTrainedModel, row: PackedRow) -> None:
    """Refuse responses so long that others beside them would be read in another way."""
    limit = fixed_up_to(model.config)
    if limit is not None and int(row.position_ids.max()) + 2 > limit:  # a response's last token is not read
        raise unpackable(model.config, beyond(limit))


def has_plain_weights(head: nn.Module) -> bool:
    """Whether a head is its weight and bias and nothing more. Of others, such as one with adapters, logits are made."""
    if isinstance(head, ModulesToSaveWrapper):  # shows the weights of the module that it calls
        head = head.modules_to_save[head.active_adapters[0]] if head.active_adapters else head.original_module
    return type(head).forward is nn.Linear.forward and not head._forward_hooks and not head._forward_pre_hooks


def detach_packed_forward(model: PreTrainedModel) -> None:
    """Give a model its class's forward back, undoing every instance-level patch of it."""
    model.__dict__.pop("forward", None)


def padded_logps(
    model: nn.Module, prompts_ids: Sequence[Sequence[int]], responses_ids: Sequence[Sequence[Sequence[int]]]
) -> Tensor:
    """Log-probs of all M responses, (M,), each read with its prompt as a padded sequence of its own, (M, S).

    The plain path: nothing of the model is touched, so every causal language model is right here. It is the oracle of
    the packed path, and what `packing: false` trains with.
    """
    logits, labels, is_response = padded_logits(model, prompts_ids, responses_ids)
    return sum_padded(wide(logits).log_softmax(-1).gather(1, labels[:, None])[:, 0], is_response)


def padded_logits(
    model: nn.Module,
    prompts_ids: Sequence[Sequence[int]],
    responses_ids: Sequence[Sequence[Sequence[int]]],
    pad_to_multiple_of: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The padded path's logits that predict the N response tokens, (N, V), these (N,), and where, (M, S-1) bool."""
    alone = [(p, r) for p, group in zip(prompts_ids, responses_ids, strict=True) for r in group]
    of_texts = text_logits(model, [[*p, *r] for p, r in alone], pad_to_multiple_of)
    logits = torch.cat([of_text[len(p) - 1 : -1] for of_text, (p, _) in zip(of_texts, alone, strict=True)])
    labels = torch.tensor([token for _, r in alone for token in r], device=logits.device)
    is_response = _padded([[0] * len(p) + [1] * len(r) for p, r in alone]).bool()[:, 1:]  # (M, S-1)
    return logits, labels, is_response.to(logits.device)


def text_logits(
    model: nn.Module, texts: Sequence[Sequence[int]], pad_to_multiple_of: int | None = None
) -> list[Tensor]:
    """Logits of M texts, read as padded rows: of each one (its tokens, V).

    One forward pass; more where a row's rope would depend on the others, see `modpo.forward.rope`.
    """
    inner = extract_model_from_parallel(model)
    limit, virtual = fixed_up_to(inner.config), virtual_tokens(inner)
    found: dict[int, Tensor] = {}
    for places in read_together([virtual + len(text) for text in texts], limit):
        if limit is not None:
            forget_longer_rows(model)
        logits = _logits_together(model, [texts[place] for place in places], pad_to_multiple_of or 1)
        found |= {place: of_row[: len(texts[place])] for place, of_row in zip(places, logits, strict=True)}
    return [found[place] for place in range(len(texts))]


def _logits_together(model: nn.Module, texts: Sequence[Sequence[int]], multiple: int) -> Tensor:
    """Logits of M texts of at most S tokens, read in one forward pass, (M, S, V)."""
    device = next(model.parameters()).device
    input_ids = _padded(texts, multiple).to(device)
    attention_mask = _padded([[1] * len(text) for text in texts], multiple).to(device)
    logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    count_pass()
    return logits[:, -input_ids.shape[1] :]  # prompt tuning puts tokens of its own before every row


def virtual_tokens(model: nn.Module) -> int:
    """How many tokens of its own a model's adapter (prompt, prefix, p-tuning) puts before every row; 0 for most."""
    mine = [model.peft_config[name] for name in model.active_adapters] if isinstance(model, PeftModel) else []
    return sum(adapter.num_virtual_tokens for adapter in mine if adapter.is_prompt_learning)


def _padded(rows: Sequence[Sequence[int]], multiple: int = 1) -> Tensor:
    """Rows of integers -> (M, S), filled up with 0; S is a multiple of `multiple`."""
    together = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return nn.functional.pad(together, (0, -together.shape[1] % multiple))


def sum_padded(of_tokens: Tensor, is_response: Tensor) -> Tensor:
    """(N,) numbers of tokens -> (M,) sums over each response's; `is_response` (M, S-1) says where they stand."""
    in_rows = torch.zeros(is_response.shape, dtype=of_tokens.dtype, device=of_tokens.device)
    return in_rows.masked_scatter(is_response, of_tokens).sum(1)


def count_pass() -> None:
    """Count a forward pass, and with it a backward pass where gradients are computed."""
    count(forward_passes=1, backward_passes=int(torch.is_grad_enabled()))
