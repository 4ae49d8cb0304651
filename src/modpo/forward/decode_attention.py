"""Attention of answers in the making, registered with transformers' `AttentionInterface` as `modpo_decoding`.

Prompts are read packed, each one once. From then on a pass reads one token of each answer: R answers are a row of R
tokens, so that linear layers see one matrix. Keys and values of a prompt are kept once for all its answers:

    prompts   (G, H_kv, L, D)       G prompts of at most L tokens
    answers   (G, H_kv, n, S, D)    n places for answers to each, of at most S tokens so far

L and S are multiples of BLOCK, for which batched products are two to three times as fast on a CPU as for the numbers
between; what is not there yet is hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface

from modpo.forward.attention import packed_attention_forward
from modpo.forward.packing import PackedLayout
from modpo.forward.packing_needs import unpackable

IMPLEMENTATION = "modpo_decoding"
BLOCK = 32


@dataclass(frozen=True)
class Places:
    """Where the R answers of a pass have their places, the same in every layer."""

    group: Tensor  # (R,) which prompt
    number: Tensor  # (R,) which of its n places
    written: Tensor  # (R,) tokens in the place before this pass
    bias: Tensor  # (G, 1, n, 1, L + S): 0, or -inf for keys that are not there; added it is faster than filled in
    full: bool  # every place is taken, and the answers stand in their order

    @property
    def shape(self) -> tuple[int, int]:
        """G and n."""
        return self.bias.shape[0], self.bias.shape[2]


@dataclass
class LayerCache:
    """Keys and values of one layer; D_v is the size of a value, in most models D."""

    prompt_keys: Tensor  # (G, H_kv, L, D)
    prompt_values: Tensor  # (G, H_kv, L, D_v)
    keys: Tensor  # (G, H_kv, n, S, D)
    values: Tensor  # (G, H_kv, n, S, D_v)

    @classmethod
    def of_prompts(cls, key: Tensor, value: Tensor, layout: PackedLayout, answers: int) -> LayerCache:
        """From the keys (H_kv, T, D) and values (H_kv, T, D_v) of packed prompts, with places for that many answers."""
        spans = [slice(group.start, group.prompt_end) for group in layout.groups]
        longest = in_blocks(max(span.stop - span.start for span in spans))
        prompts = (torch.stack([_longer(x[:, span], longest) for span in spans]) for x in (key, value))
        heads, *_ = key.shape
        places = (x.new_zeros(len(spans), heads, answers, BLOCK, x.shape[-1]) for x in (key, value))
        return cls(*prompts, *places)

    @property
    def size(self) -> int:
        """Places for answers, G n."""
        return self.keys.shape[0] * self.keys.shape[2]

    def write(self, key: Tensor, value: Tensor, places: Places) -> None:
        """One token of each answer: (H_kv, R, D), (H_kv, R, D_v)."""
        for kept, new in ((self.keys, key), (self.values, value)):
            kept[places.group, :, places.number, places.written] = new.transpose(0, 1)

    def attend(self, query: Tensor, places: Places) -> Tensor:
        """Scaled queries of one token of each answer, (H, R, D) -> (R, H, D_v)."""
        (groups, answers), (heads, _, size) = places.shape, query.shape
        kv_heads, length = self.keys.shape[1], self.prompt_keys.shape[2]
        if not places.full:
            everywhere = query.new_zeros(heads, groups, answers, size)
            everywhere[:, places.group, places.number] = query
            query = everywhere
        q = query.reshape(kv_heads, -1, groups, answers, size).permute(2, 0, 3, 1, 4)  # (G, H_kv, n, H / H_kv, D)
        q = q.contiguous()
        together = q.flatten(2, 3)  # the answers to a prompt read it in one product
        of_prompt = (together @ self.prompt_keys.transpose(-1, -2)).view(*q.shape[:-1], length)
        scores = torch.cat([of_prompt, q @ self.keys.transpose(-1, -2)], -1).add_(places.bias)
        probs = scores.softmax(-1)
        out = probs[..., length:] @ self.values
        out += (probs[..., :length].flatten(2, 3) @ self.prompt_values).view_as(out)
        out = out.permute(0, 2, 1, 3, 4).reshape(groups, answers, heads, -1)
        return out.flatten(0, 1) if places.full else out[places.group, places.number]

    def select(self, groups: Tensor, numbers: Tensor, answered: int) -> LayerCache:
        """Of some prompts, (G',), the places `numbers`, (G', n'), with room for `answered` tokens."""
        tokens, prompts = in_blocks(answered), groups[:, None]
        places = (
            x[prompts, :, numbers, : min(tokens, x.shape[3])].transpose(1, 2).contiguous()
            for x in (self.keys, self.values)
        )
        return LayerCache(self.prompt_keys[groups], self.prompt_values[groups], *places)

    def grown(self) -> LayerCache:
        """With room for BLOCK tokens more."""
        room = self.keys.shape[3] + BLOCK
        return LayerCache(self.prompt_keys, self.prompt_values, _longer(self.keys, room), _longer(self.values, room))

    def joined(self, other: LayerCache) -> LayerCache:
        """With the prompts and answers of another below."""
        return LayerCache(
            *(_stacked(mine, theirs) for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True))
        )


@dataclass
class DecodingCache:
    """Keys and values of every layer."""

    layers: dict[nn.Module, LayerCache] = field(default_factory=dict)

    @property
    def any_layer(self) -> LayerCache:
        """One of them: all have the same numbers of prompts, places and tokens."""
        return next(iter(self.layers.values()))

    def each(self, function: Callable[..., LayerCache], *arguments: object) -> DecodingCache:
        """A cache whose layers are what a method of `LayerCache` makes of these."""
        return DecodingCache({module: function(layer, *arguments) for module, layer in self.layers.items()})

    def joined(self, other: DecodingCache) -> DecodingCache:
        """With the prompts and answers of another below."""
        return DecodingCache({module: layer.joined(other.layers[module]) for module, layer in self.layers.items()})


def in_blocks(tokens: int) -> int:
    """The next multiple of BLOCK."""
    return max(1, -(-tokens // BLOCK)) * BLOCK


def decoding_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: PackedLayout | None = None,
    decoding: DecodingCache | None = None,
    answers: int = 1,
    places: Places | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q k / sqrt(d)) v of prompts, whose keys and values are kept, or of one token of each answer.

    Args:
        query: (1, H, T, D). key: (1, H_kv, T, D), H a multiple of H_kv. value: (1, H_kv, T, D_v).
        decoding: what was read before, and is added to.
        packed, answers: the layout of T tokens of prompts, and for how many answers to each there is to be place.
        places: of T answers, one token each.

    Returns:
        (1, T, H, D_v), None.

    Raises:
        ValueError: neither prompts nor answers. InputError: a layer that is called twice in one pass.
    """
    if decoding is None:
        raise ValueError("attention of answers was called without what was read before")
    if packed is not None:
        if module in decoding.layers:
            raise unpackable(module.config, "it calls one attention layer twice in a pass")
        decoding.layers[module] = LayerCache.of_prompts(key[0], value[0], packed, answers)
        return packed_attention_forward(
            module, query, key, value, attention_mask, scaling, dropout, packed=packed, **kwargs
        )
    assert places is not None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = decoding.layers[module]
    layer.write(key[0], value[0], places)
    return layer.attend((query[0] * scaling).to(value.dtype), places)[None], None


def _longer(x: Tensor, length: int) -> Tensor:
    """(..., S, D) -> (..., length, D), filled up with zeros."""
    return pad(x, (0, 0, 0, length - x.shape[-2]))


def _stacked(a: Tensor, b: Tensor) -> Tensor:
    """Two along dim 0, each first made as large as the other in the dims between heads and D."""
    sizes = [max(pair) for pair in zip(a.shape[2:-1], b.shape[2:-1], strict=True)]
    return torch.cat([_filled(x, sizes) for x in (a, b)])


def _filled(x: Tensor, sizes: list[int]) -> Tensor:
    missing = [size - there for size, there in zip(sizes, x.shape[2:-1], strict=True)]
    return pad(x, [0, 0, *(n for more in reversed(missing) for n in (0, more))])


AttentionInterface.register(IMPLEMENTATION, decoding_attention_forward)
