"""What training will cost, from a model's shape and the lengths of the data: floating-point work, memory, time.

An estimate for dense decoders. Work and live memory are counted: two floating-point operations for each multiply-add of
a matrix product, and the tensors that a forward pass keeps for the backward pass. What comes on top of them, the
element-wise work and the heap's losses, was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modpo.forward.branches import BRANCH_ROWS
from modpo.forward.head import CHUNK_ELEMENTS
from modpo.inspection.model_shape import ModelShape

# Measured on a CPU with a Llama of 12 layers, 576 wide, with adapters, in bfloat16 and in float32:
ELEMENTWISE_PASSES = 8.0  # time beside matrix products, in times of silu(x) * y over the kept activations
HEAP_SHARE = 1.0  # memory that the C library's heap loses between activations, for each byte of them


@dataclass(frozen=True)
class Work:
    """How much some prompt groups make a model do."""

    read: float = 0  # positions that go through the layers
    predicted: float = 0  # response tokens, at which the head is evaluated
    attended: float = 0  # query-key pairs

    def __add__(self, other: Work) -> Work:
        return Work(self.read + other.read, self.predicted + other.predicted, self.attended + other.attended)

    def __mul__(self, times: float) -> Work:
        return Work(self.read * times, self.predicted * times, self.attended * times)


@dataclass(frozen=True)
class Memory:
    """Peak memory of training by what takes it, bytes."""

    weights: float
    training_state: float  # trained weights, gradients, Adam's two moments
    activations: float
    logits: float
    heap: float = 0  # what the C library's heap loses, on a CPU
    process: float = 0  # Python and its libraries, on a CPU

    @property
    def total(self) -> float:
        return self.weights + self.training_state + self.activations + self.logits + self.heap + self.process


@dataclass(frozen=True)
class Rates:
    """What a device does in a second."""

    matmul: float  # floating-point operations of matrix products
    elementwise: float  # bytes of silu(x) * y


# --- work ---------------------------------------------------------------------------------------------------


def packed_work(prompt: int, responses: Sequence[int]) -> Work:
    """The work of one group of a packed row: its prompt is read once, a response's last token never.

    Args:
        prompt: tokens of the prompt. responses: tokens of each response.
    """
    attended = prompt * (prompt + 1) // 2
    attended += sum((n - 1) * prompt + (n - 1) * n // 2 for n in responses)
    return Work(prompt + sum(responses) - len(responses), sum(responses), attended)


def padded_work(groups: Iterable[tuple[int, Sequence[int]]]) -> Work:
    """The work of one padded batch of (prompt, responses), each response behind a copy of its prompt.

    The head is evaluated at every position, padding included.
    """
    lengths = [prompt + response for prompt, responses in groups for response in responses]
    if not lengths:
        return Work()
    width, count = max(lengths), len(lengths)
    return Work(count * width, count * width, count * width * (width + 1) // 2)


def training_flops(shape: ModelShape, work: Work, *, gradient_checkpointing: bool = False) -> float:
    """Floating-point operations of the forward and backward pass.

    A token costs 2N in the N parameters of the layers, and 2N more in the backward pass down to the activations;
    gradients of trained weights cost another 2 each. An attended pair costs two products of the queries' width in
    the forward pass and five in the backward pass, which computes the scores again. The head works at response
    tokens only: twice the forward's work when it is frozen, four times when it is trained.
    """
    per_token = 4 * shape.body + (6 if shape.lora else 2) * shape.trained_per_token  # adapters: forward and backward
    head = (4 if shape.lora else 8) * shape.vocabulary * shape.hidden
    attention = 14 * shape.layers * shape.queries
    flops = work.read * per_token + work.predicted * head + work.attended * attention
    return flops + (_layers_forward(shape, work) if gradient_checkpointing else 0)


def scoring_flops(shape: ModelShape, work: Work) -> float:
    """Floating-point operations of the reference's forward pass."""
    return _layers_forward(shape, work) + work.predicted * 2 * shape.vocabulary * shape.hidden


def _layers_forward(shape: ModelShape, work: Work) -> float:
    return work.read * 2 * shape.body + work.attended * 4 * shape.layers * shape.queries


# --- time ---------------------------------------------------------------------------------------------------


def training_seconds(shape: ModelShape, work: Work, rates: Rates, *, gradient_checkpointing: bool = False) -> float:
    """Matrix products, then everything else, which takes the longer the more numbers a layer makes."""
    flops = training_flops(shape, work, gradient_checkpointing=gradient_checkpointing)
    passes = ELEMENTWISE_PASSES * (1.5 if gradient_checkpointing else 1)
    return flops / rates.matmul + passes * _kept(shape, work) / rates.elementwise


def scoring_seconds(shape: ModelShape, work: Work, rates: Rates) -> float:
    """The reference's forward pass: half of the element-wise work of forward and backward."""
    return scoring_flops(shape, work) / rates.matmul + ELEMENTWISE_PASSES / 2 * _kept(shape, work) / rates.elementwise


def _kept(shape: ModelShape, work: Work) -> float:
    return shape.layers * work.read * layer_bytes_per_token(shape)


# --- memory -------------------------------------------------------------------------------------------------


def training_memory(
    shape: ModelShape,
    work: Work,
    longest: int,
    *,
    packing: bool = True,
    gradient_checkpointing: bool = False,
    heap_share: float = 0,
    process: float = 0,
) -> Memory:
    """Peak memory of a training step.

    Adapters are trained in float32: 4 bytes each for the weight and its gradient and 8 for Adam's moments. Without
    adapters the weights are trained as they are, with a gradient and two moments of the same number format.

    Args:
        work: of the largest forward pass.
        longest: most tokens of a prompt with one response.
        packing: without it, the logits of the whole batch are alive.
        heap_share: `HEAP_SHARE` on a CPU.
        process: bytes that the Python process takes without any of this.
    """
    state = 16 * shape.trainable if shape.lora else 3 * shape.bytes * shape.trainable
    per_layer = work.read * layer_bytes_per_token(shape)
    layers = shape.layers * per_layer
    if gradient_checkpointing:
        layers = shape.layers * work.read * shape.hidden * shape.bytes + per_layer
    # One layer more: what the backward pass of a layer works with. The head keeps its input and its gradient.
    head_input = 2 * work.predicted * shape.hidden * shape.bytes
    activations = layers + per_layer + head_input + _attention_block(shape, longest)
    # Logits, the same in float32, and their probabilities.
    alive = min(work.predicted * shape.vocabulary, CHUNK_ELEMENTS) if packing else work.predicted * shape.vocabulary
    logits = alive * (shape.bytes + 4 + (shape.bytes if packing else 4))
    heap = heap_share * (activations + logits)
    return Memory(shape.parameters * shape.bytes, state, activations, logits, heap, process)


def layer_bytes_per_token(shape: ModelShape) -> float:
    """What one layer keeps of one token for the backward pass, with a gated MLP; b bytes a number.

    8 h + 2 b h          the inputs of both norms, in float32, and their outputs before the norm's weight; with adapters
                         that weight is frozen, and 2 b h + 8 for the inputs as they came and their scales
    b (2 h + q + i)      what q|k|v, gate|up, o and down read
    b (q + 2 kv)         queries, keys and values
    3 b i                gate, up and silu(gate)
    """
    h, i, b = shape.hidden, shape.intermediate, shape.bytes
    norms = 2 * b * h + 8 if shape.lora else 8 * h + 2 * b * h
    return norms + b * (2 * h + shape.queries + i) + b * (shape.queries + 2 * shape.keys) + 3 * b * i


def _attention_block(shape: ModelShape, longest: int) -> float:
    """Scores, probabilities and their gradient of one block of rows."""
    return 3 * shape.heads * min(longest, BRANCH_ROWS) * longest * shape.bytes
