"""Log-probabilities of responses under a model: packed (fast) and padded (plain).

Both give log pi(y|x) summed over the response's tokens, in nats, float32 at least.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from modpo.base.costs import count
from modpo.base.errors import InputError, Problem
from modpo.forward.attention import packed_attention
from modpo.forward.head import head_logps, head_readings, wide
from modpo.forward.low_rank import causal_lm, evaluating
from modpo.forward.packing import PackedRow, pack, packed_tokens, runs

PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative to a response's log-prob
PROBE_TOLERANCE_16_BIT = 0.02  # rounding makes 0.2 %; everything attending to everything before it 6 %
TOKENS_PER_FORWARD = 4096  # packed tokens that are read at a time where nothing is trained
PACKABLE_LAYER_TYPES = {"full_attention"}


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
        hidden = self.base_model(
            input_ids=packed_row.input_ids,
            position_ids=packed_row.position_ids,
            use_cache=False,
            packed=packed_row.layout,
        ).last_hidden_state[0]  # (T, hidden size)
        head = self.get_output_embeddings()
        read = head_readings if readings else head_logps
        return read(hidden[packed_row.predictors], head.weight, head.bias, packed_row.labels)

    forward.__dict__["takes_packed_rows"] = True
    model.forward = types.MethodType(forward, model)


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

    def padded(rows: Iterable[list[int]]) -> Tensor:
        together = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        over = -together.shape[1] % (pad_to_multiple_of or 1)
        return nn.functional.pad(together, (0, over)).to(next(model.parameters()).device)

    input_ids = padded([*p, *r] for p, r in alone)
    attention_mask = padded([1] * (len(p) + len(r)) for p, r in alone)
    is_response = padded([0] * len(p) + [1] * len(r) for p, r in alone).bool()[:, 1:]  # (M, S-1)
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
    count_pass()
    return logits[is_response], input_ids[:, 1:][is_response], is_response


def sum_padded(of_tokens: Tensor, is_response: Tensor) -> Tensor:
    """(N,) numbers of tokens -> (M,) sums over each response's; `is_response` (M, S-1) says where they stand."""
    in_rows = torch.zeros(is_response.shape, dtype=of_tokens.dtype, device=of_tokens.device)
    return in_rows.masked_scatter(is_response, of_tokens).sum(1)


def count_pass() -> None:
    """Count a forward pass, and with it a backward pass where gradients are computed."""
    count(forward_passes=1, backward_passes=int(torch.is_grad_enabled()))


def require_packable(model: PreTrainedModel) -> None:
    """Check that a model can read packed rows, by its configuration and by reading one.

    Raises:
        InputError: naming what stands in the way; `packing: false` is the way out.
    """
    attached = getattr(model.forward, "takes_packed_rows", False)
    if reason := _known_obstacle(model) or _probe(model):
        if not attached:
            detach_packed_forward(model)
        where, problem = f"model ({model.config.model_type})", f"cannot read packed rows: {reason}"
        raise InputError(Problem(where, "packing", problem, "set `packing: false`"))


def _known_obstacle(model: PreTrainedModel) -> str | None:
    config = model.config.get_text_config()
    if other_layers := set(getattr(config, "layer_types", None) or ()) - PACKABLE_LAYER_TYPES:
        return f"it has layers of type {', '.join(sorted(other_layers))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return f"its attention slides over a window of {config.sliding_window} tokens"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention does not go through transformers' AttentionInterface"
    return None


@torch.no_grad()
def _probe(model: PreTrainedModel) -> str | None:
    """Read a tiny row packed and padded: catches ignored position ids and attention of another kind."""
    vocabulary = model.config.get_text_config().vocab_size
    tokens = (vocabulary // 3 + 7 * i for i in itertools.count())  # words, not the special tokens at either end

    def text(length: int) -> list[int]:
        return [token % vocabulary for token in itertools.islice(tokens, length)]

    prompts = [text(6), text(1)]
    responses = [[text(24), text(16)], [text(24), text(16)]]  # long enough for rounding to average out
    try:
        with evaluating(model):
            expected = padded_logps(model, prompts, responses)
            if not _head_gives_logits(model, torch.tensor([prompts[0]], device=expected.device)):
                return "it scales or caps the logits behind its head"
            attach_packed_forward(model)
            with packed_attention(model):
                found = packed_logps(model, pack(prompts, responses).to(expected.device))
    except (TypeError, ValueError, KeyError) as error:
        return str(error).splitlines()[0].partition("; fix:")[0]
    tolerance = PROBE_TOLERANCE.get(model.dtype, PROBE_TOLERANCE_16_BIT)
    off = ((found - expected).abs() / expected.abs().clamp(min=1)).mean().item()
    return f"its log-probs come out {off:.1%} off" if off > tolerance else None


def _head_gives_logits(model: PreTrainedModel, input_ids: Tensor) -> bool:
    """Whether the logits of a text, (1, T), are the head's output and nothing more: the same numbers in any dtype."""
    hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    logits = model(input_ids=input_ids, use_cache=False).logits
    return torch.allclose(model.get_output_embeddings()(hidden), logits, rtol=1e-2, atol=1e-3, equal_nan=True)


@torch.no_grad()
def reference_logps(
    model: PreTrainedModel | PeftModel,
    prompts_ids: Sequence[Sequence[int]],
    responses_ids: Sequence[Sequence[Sequence[int]]],
    *,
    packing: bool,
    autocast: torch.dtype | None = None,
) -> list[float]:
    """Log-probs of all M responses under a model that is not being trained, a list of M. Without dropout.

    Args:
        autocast: the number format of mixed precision, in which the model is read; None: its own.
    """
    mixed = torch.autocast(next(model.parameters()).device.type, dtype=autocast, enabled=autocast is not None)
    if not packing:
        alone = zip(prompts_ids, responses_ids, strict=True)
        with evaluating(model), mixed:
            return [logp for prompt, group in alone for logp in padded_logps(model, [prompt], [group]).tolist()]
    inner = causal_lm(model)
    if not getattr(inner.forward, "takes_packed_rows", False):
        require_packable(inner)
    with evaluating(model), packed_attention(inner), mixed:
        row = pack(prompts_ids, responses_ids).to(next(model.parameters()).device)
        return packed_logps(model, row).tolist()


def logps_by_group(
    model: PreTrainedModel | PeftModel,
    prompts_ids: Sequence[Sequence[int]],
    responses_ids: Sequence[Sequence[Sequence[int]]],
    *,
    packing: bool,
    autocast: torch.dtype | None = None,
) -> Iterator[list[float]]:
    """`reference_logps` of any number of groups, one list each, read in passes of at most TOKENS_PER_FORWARD."""
    sizes = [packed_tokens(prompt, group) for prompt, group in zip(prompts_ids, responses_ids, strict=True)]
    for part in runs(sizes, TOKENS_PER_FORWARD):
        read = reference_logps(model, prompts_ids[part], responses_ids[part], packing=packing, autocast=autocast)
        flat = iter(read)
        for group in responses_ids[part]:
            yield [next(flat) for _ in group]
