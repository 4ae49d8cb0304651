"""What a pass of a model must compute and move, counted from its shapes.

Counted as FLOPs (a multiplication and an addition are two): linear layers, adapters, the head at response tokens, and
attention between positions that see one another. A frozen layer's backward is the gradient of its input; an adapter's,
of both its matrices too; what is computed again in a backward pass is not counted. Counted as bytes: weights once for
each pass over them, and the input and output of each linear layer once. Element-wise work counts for neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peft.tuners.lora import Linear as Adapted
from torch import nn

from modpo.forward.packing import PackedLayout, PackedRow


@dataclass(frozen=True)
class Work:
    """Tokens read or sampled, FLOPs and bytes."""

    tokens: int = 0
    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Shapes:
    """The matrices of a decoder of which each token sees all layers.

    Args:
        layers: (inputs, outputs, rank of the adapters) of each linear layer but the head.
        head: (hidden size, vocabulary).
        attention: multiplications of a query with a key, over all layers and heads.
        first: how many of `layers` read the embeddings, whose gradient nobody asks for.
    """

    layers: tuple[tuple[int, int, int], ...]
    head: tuple[int, int]
    attention: int
    first: int
    width: int  # bytes of a number

    @classmethod
    def of(cls, model: nn.Module) -> Shapes:
        """Of a causal language model, bare or below adapters."""
        config = model.config
        head = model.get_output_embeddings()
        heads = config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            layers=tuple(_linear_layers(model, head)),
            head=(head.in_features, head.out_features),
            attention=config.num_hidden_layers * heads * dim,
            first=3,
            width=head.weight.element_size(),
        )

    @property
    def products(self) -> set[tuple[int, int]]:
        """The distinct (inputs, outputs) of the frozen matrices."""
        return {(i, o) for i, o, _ in self.layers} | {self.head}

    def read(self, tokens: int, heads: int, seen: int) -> Work:
        """A forward pass over `tokens` positions, the head at `heads` tokens, `seen` pairs of query and key."""
        H, V = self.head
        flops = 4.0 * self.attention * seen + 2.0 * heads * H * V
        moved = H * V + heads * (H + V)
        for i, o, r in self.layers:
            flops += 2.0 * tokens * (i * o + r * (i + o))
            moved += i * o + r * (i + o) + tokens * (i + o)
        return Work(tokens, flops, float(moved * self.width))

    def trained(self, tokens: int, heads: int, seen: int) -> Work:
        """A forward and a backward pass over the same, base and head frozen."""
        H, V = self.head
        forward = self.read(tokens, heads, seen)
        flops = forward.flops + 8.0 * self.attention * seen + 2.0 * heads * H * V
        moved = forward.bytes / self.width + H * V + heads * H
        for n, (i, o, r) in enumerate(self.layers):
            flops += 2.0 * tokens * ((0 if n < self.first else i * o + r * i) + r * o + r * (i + o))
            moved += i * o + r * (i + o) + tokens * (i + o)
        return Work(tokens, flops, float(moved * self.width))

    def answered(self, prompt: int, answers: list[int]) -> Work:
        """A prompt read once, and each answer beside it but for its last token."""
        reads = [(prompt, 0, prompt * (prompt + 1) // 2)]
        reads += [(n - 1, n, (n - 1) * prompt + n * (n - 1) // 2) for n in answers]
        return sum((self.read(*each) for each in reads), start=Work())

    def sampled(self, prompts: list[int], answers: list[list[int]], passes: int) -> Work:
        """Answers to prompts, which are read once, in `passes` over the weights; tokens are those of the answers."""
        flops = sum(self.answered(p, of_prompt).flops for p, of_prompt in zip(prompts, answers, strict=True))
        weights = sum(i * o + r * (i + o) for i, o, r in self.layers) + self.head[0] * self.head[1]
        return Work(sum(map(sum, answers)), flops, float(weights * self.width * passes))


def _linear_layers(model: nn.Module, head: nn.Module) -> Iterator[tuple[int, int, int]]:
    adapted = {id(m.base_layer): m for m in model.modules() if isinstance(m, Adapted)}
    for module in model.modules():
        inside = isinstance(module, nn.Linear) and module is not head
        if inside and not any(module in (*a.lora_A.values(), *a.lora_B.values()) for a in adapted.values()):
            adapter = adapted.get(id(module))
            ranks = sum(adapter.r[name] for name in adapter.active_adapters) if adapter else 0
            yield module.in_features, module.out_features, ranks


def packed(shapes: Shapes, row: PackedRow, *, trained: bool) -> Work:
    """The work of a packed row."""
    count = shapes.trained if trained else shapes.read
    return count(row.layout.length, len(row.labels), seen_pairs(row.layout))


def seen_pairs(layout: PackedLayout) -> int:
    """Pairs of a position and one that it attends to."""
    seen = 0
    for group in layout.groups:
        prompt = group.prompt_end - group.start
        seen += prompt * (prompt + 1) // 2
        for first, last in group.responses:
            n = last - first
            seen += n * prompt + n * (n + 1) // 2
    return seen
