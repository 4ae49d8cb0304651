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
from modpo.forward.low_rank import causal_lm, evaluating
from modpo.forward.packing import PackedRow, pack, packed_tokens, runs

CHUNK_ELEMENTS = 1 << 24  # logits alive at a time: 64 MiB in float32
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
    _count_pass()
    return logps


def attach_packed_forward(model: PreTrainedModel) -> None:
    """Let `model(packed_row=row)` return its tokens' log-probs, (N,); every other call stays as it was.

    The forward itself is taken over, rather than the model taken apart, because the wrappers of distributed training
    act on calls of the whole model. Attaching twice does nothing.
    """
    if getattr(model.forward, "takes_packed_rows", False):
        return
    plain_forward = model.forward

    @wraps(type(model).forward)  # `generate` reads the signature to know which inputs to prepare
    def forward(self: PreTrainedModel, *args: Any, packed_row: PackedRow | None = None, **kwargs: Any) -> Any:
        if packed_row is None:
            return plain_forward(*args, **kwargs)
        hidden = self.base_model(
            input_ids=packed_row.input_ids,
            position_ids=packed_row.position_ids,
            use_cache=False,
            packed=packed_row.layout,
        ).last_hidden_state[0]  # (T, hidden size)
        head = self.get_output_embeddings()
        return head_logps(hidden[packed_row.predictors], head.weight, head.bias, packed_row.labels)

    forward.__dict__["takes_packed_rows"] = True
    model.forward = types.MethodType(forward, model)


def detach_packed_forward(model: PreTrainedModel) -> None:
    """Give a model its class's forward back, undoing every instance-level patch of it."""
    model.__dict__.pop("forward", None)


def head_logps(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """log softmax(hidden weight^T + bias)[label] for each position, without keeping logits.

    Args:
        hidden: (N, H). weight: (V, H), the language model head. bias: (V,) or None. labels: (N,).

    Returns:
        (N,), float32 (float64 for float64 inputs).
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        weight, bias = weight.to(dtype), bias.to(dtype) if bias is not None else None
    hidden = hidden.to(weight.dtype)
    logps: Tensor = _HeadLogps.apply(hidden, weight, bias, labels)
    return logps


def _chunks(positions: int, vocabulary: int) -> Sequence[slice]:
    """Slices of n positions whose logits, (n, V), have at most CHUNK_ELEMENTS elements."""
    rows = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(a, min(a + rows, positions)) for a in range(0, positions, rows)]


def _wide_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden (n, H), weight (V, H) -> logits (n, V), in float32 at least: no softmax is taken in 16 bits."""
    logits = nn.functional.linear(hidden, weight, bias)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _HeadLogps(torch.autograd.Function):
    """With a frozen head, d logp / d hidden needs nothing of the backward pass: it is computed from the same logits.

    With a trained one, the logits are computed again in the backward pass, chunk by chunk.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        """hidden (N, H), weight (V, H), bias (V,), labels (N,) -> (N,)."""
        out = []
        ctx.frozen = not any(ctx.needs_input_grad[1:])
        slope = torch.empty_like(hidden) if ctx.frozen and ctx.needs_input_grad[0] else None
        for chunk in _chunks(len(hidden), len(weight)):
            logits = _wide_logits(hidden[chunk], weight, bias)
            lse = logits.logsumexp(dim=-1, keepdim=True)
            out.append((logits.gather(1, labels[chunk, None]) - lse)[:, 0])
            if slope is not None:
                probs = logits.sub_(lse).exp_().to(weight.dtype)
                slope[chunk] = weight[labels[chunk]] - probs @ weight  # (n, H)
        ctx.save_for_backward(*((slope,) if ctx.frozen else (hidden, weight, bias, labels)))
        return torch.cat(out)

    @staticmethod
    def backward(ctx: Any, d_logps: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """d_logps (N,) -> gradients of hidden (N, H), and of a trained head: weight (V, H) and bias (V,)."""
        if ctx.frozen:
            (slope,) = ctx.saved_tensors
            return d_logps[:, None].to(slope.dtype) * slope, None, None, None
        hidden, weight, bias, labels = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        d_bias = torch.zeros_like(d_weight[:, 0]) if bias is not None else None
        for chunk in _chunks(len(hidden), len(weight)):
            probs = torch.softmax(_wide_logits(hidden[chunk], weight, bias), dim=-1)
            d_logits = -probs * d_logps[chunk, None]
            d_logits.scatter_add_(1, labels[chunk, None], d_logps[chunk, None].to(d_logits.dtype))
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            narrow = d_logits.to(weight.dtype)
            d_hidden[chunk] = narrow @ weight
            d_weight += narrow.T @ hidden[chunk]
        narrow_bias = d_bias.to(bias.dtype) if d_bias is not None else None
        return d_hidden, d_weight.to(weight.dtype), narrow_bias, None


def padded_logps(
    model: nn.Module, prompts_ids: Sequence[Sequence[int]], responses_ids: Sequence[Sequence[Sequence[int]]]
) -> Tensor:
    """Log-probs of all M responses, (M,), each read with its prompt as a padded sequence of its own, (M, S).

    The plain path: nothing of the model is touched, so every causal language model is right here. It is the oracle of
    the packed path, and what `packing: false` trains with.
    """
    alone = [(p, r) for p, group in zip(prompts_ids, responses_ids, strict=True) for r in group]

    def padded(rows: Iterable[list[int]]) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(next(model.parameters()).device)

    input_ids = padded([*p, *r] for p, r in alone)
    attention_mask = padded([1] * (len(p) + len(r)) for p, r in alone)
    is_response = padded([0] * len(p) + [1] * len(r) for p, r in alone).bool()
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    _count_pass()
    wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    token_logps = wide.log_softmax(-1).gather(2, input_ids[:, 1:, None])[..., 0]  # (M, S-1)
    return (token_logps * is_response[:, 1:]).sum(1)


def _count_pass() -> None:
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
) -> list[float]:
    """Log-probs of all M responses under a model that is not being trained, a list of M. Without dropout."""
    if not packing:
        alone = zip(prompts_ids, responses_ids, strict=True)
        with evaluating(model):
            return [logp for prompt, group in alone for logp in padded_logps(model, [prompt], [group]).tolist()]
    inner = causal_lm(model)
    if not getattr(inner.forward, "takes_packed_rows", False):
        require_packable(inner)
    with evaluating(model), packed_attention(inner):
        row = pack(prompts_ids, responses_ids).to(next(model.parameters()).device)
        return packed_logps(model, row).tolist()


def logps_by_group(
    model: PreTrainedModel | PeftModel,
    prompts_ids: Sequence[Sequence[int]],
    responses_ids: Sequence[Sequence[Sequence[int]]],
    *,
    packing: bool,
) -> Iterator[list[float]]:
    """`reference_logps` of any number of groups, one list each, read in passes of at most TOKENS_PER_FORWARD."""
    sizes = [packed_tokens(prompt, group) for prompt, group in zip(prompts_ids, responses_ids, strict=True)]
    for part in runs(sizes, TOKENS_PER_FORWARD):
        flat = iter(reference_logps(model, prompts_ids[part], responses_ids[part], packing=packing))
        for group in responses_ids[part]:
            yield [next(flat) for _ in group]
