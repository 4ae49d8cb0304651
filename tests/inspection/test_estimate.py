"""Estimates against what a real, small model does: counted operations, kept tensors, parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from modpo.base.errors import InputError
from modpo.experiment.sections import LoraSection, ModelSection
from modpo.forward.attention import packed_attention
from modpo.forward.branches import plan
from modpo.forward.logprobs import attach_packed_forward, packed_logps
from modpo.forward.low_rank import attach_joint_adapters
from modpo.forward.norms import attach_frozen_norms
from modpo.forward.packing import PackedRow, pack
from modpo.inspection.estimate import (
    HEAP_SHARE,
    Rates,
    Work,
    layer_bytes_per_token,
    packed_work,
    padded_work,
    scoring_flops,
    scoring_seconds,
    training_flops,
    training_memory,
    training_seconds,
)
from modpo.inspection.model_shape import ModelShape, model_shape
from modpo.models.folders import lora_config

GROUPS = [(40, [30, 20]), (50, [25])]
LONG = [(120, [60, 60]), (200, [40])]  # so that attention is a good part of the work
SHAPE = ModelShape(
    parameters=1000,
    body=600,
    trainable=100,
    layers=2,
    hidden=8,
    intermediate=32,
    heads=2,
    queries=8,
    keys=4,
    vocabulary=50,
    bytes=2,
    lora=True,
)


def row_of(groups: list[tuple[int, list[int]]]) -> PackedRow:
    """A packed row with those lengths."""
    return pack([[5] * prompt for prompt, _ in groups], [[[7] * n for n in responses] for _, responses in groups])


def work_of(groups: list[tuple[int, list[int]]]) -> Work:
    return sum((packed_work(*group) for group in groups), start=Work())


def model_of(layers: int, dtype: torch.dtype, lora: LoraSection | None, folder: Path):
    """A random model and its shape, read from the config.json that it was saved with."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=96,
        intermediate_size=320,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    config.save_pretrained(folder)
    model = LlamaForCausalLM(config).to(dtype)
    attach_packed_forward(model)
    section = ModelSection(str(folder), dtype=str(dtype).removeprefix("torch."))
    shape = model_shape(folder, section, lora)
    if lora is not None:
        from peft import get_peft_model

        return get_peft_model(model, lora_config(lora)).train(), model, shape
    return model.train(), model, shape


# --- work ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [[(1, [1])], [(3, [2, 4])], [(5, [1, 1, 7]), (2, [3])]])
def test_packed_work_is_what_a_packed_row_holds(groups):
    row, work = row_of(groups), work_of(groups)
    assert work.read == row.layout.length
    assert work.predicted == len(row.labels)
    assert work.attended == int(row.layout.dense_mask.sum())


def test_padded_work_by_hand():
    """Sequences of 3+2, 3+4 and 5+1 tokens, each padded to 7: 21 positions; a position sees 1 to 7: 28 a sequence."""
    assert padded_work([(3, [2, 4]), (5, [1])]) == Work(21, 21, 84)
    assert padded_work([]) == Work()


def computed(groups: list[tuple[int, list[int]]]) -> Work:
    """The work as attention does it: branches are padded to one shape, and what that hides is computed too."""
    work, batches = work_of(groups), plan(row_of(groups).layout, 2, torch.float32, torch.device("cpu")).batches
    return Work(work.read, work.predicted, sum(b.branches * b.R * (b.P + b.R) for b in batches))


@pytest.mark.parametrize("lora", [LoraSection(r=8), None], ids=["adapters", "all weights"])
def test_training_flops_are_those_that_torch_counts(tmp_path, lora):
    """But for what lies below the first trained weight, which needs no gradient: so the tolerance."""
    model, causal_lm, shape = model_of(4, torch.float32, lora, tmp_path)
    with packed_attention(causal_lm), FlopCounterMode(display=False) as counted:
        packed_logps(model, row_of(LONG)).sum().backward()
    assert training_flops(shape, computed(LONG)) == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_scoring_flops_are_those_that_torch_counts(tmp_path):
    """But for the weights of norms, which `body` counts as if they stood in matrix products."""
    model, causal_lm, shape = model_of(2, torch.float32, None, tmp_path)
    with torch.no_grad(), packed_attention(causal_lm), FlopCounterMode(display=False) as counted:
        packed_logps(model, row_of(LONG))
    assert scoring_flops(shape, computed(LONG)) == pytest.approx(counted.get_total_flops(), rel=2e-3)


def test_gradient_checkpointing_adds_a_forward_pass_of_the_layers():
    """Read 10 tokens: 2 x 10 x 600; attend 30 pairs: 4 x 2 layers x 8 x 30."""
    work = Work(10, 4, 30)
    extra = training_flops(SHAPE, work, gradient_checkpointing=True) - training_flops(SHAPE, work)
    assert extra == 2 * 10 * 600 + 4 * 2 * 8 * 30


# --- memory -------------------------------------------------------------------------------------------------


def kept_bytes(layers: int, dtype: torch.dtype, lora: LoraSection | None, folder: Path) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights not counted; every storage once."""
    model, causal_lm, _ = model_of(layers, dtype, lora, folder)
    attach_joint_adapters(model)  # as the trainer does
    attach_frozen_norms(model)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        packed_attention(causal_lm),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        packed_logps(model, row_of(GROUPS))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("lora", [LoraSection(r=2), None], ids=["adapters", "all weights"])
def test_a_layer_keeps_as_much_as_estimated(tmp_path, dtype, lora):
    one_layer = kept_bytes(3, dtype, lora, tmp_path) - kept_bytes(2, dtype, lora, tmp_path)
    shape = model_of(2, dtype, lora, tmp_path)[2]
    assert layer_bytes_per_token(shape) * work_of(GROUPS).read == pytest.approx(one_layer, rel=0.04)


def test_training_memory_by_hand():
    """b = 2, h = 8, i = 32, q = 8, kv = 4: a layer keeps of a token

        2bh + 8 + b(2h + q + i) + b(q + 2kv) + 3bi = 40 + 112 + 32 + 192 = 376 bytes

    of 10 tokens and 2 layers and one more 11280; the head's input and gradient 2 x 4 x 8 x 2 = 128; one block of
    attention 3 x 2 heads x 6 x 6 x 2 = 432. Logits 4 x 50 x (2 + 4 + 2) = 1600.
    """
    work = Work(read=10, predicted=4, attended=30)
    memory = training_memory(SHAPE, work, longest=6, heap_share=HEAP_SHARE, process=7)
    assert memory.weights == 2 * 1000
    assert memory.training_state == 16 * 100
    assert memory.activations == 11280 + 128 + 432
    assert memory.logits == 1600
    assert memory.heap == HEAP_SHARE * (11840 + 1600)
    assert memory.total == 2000 + 1600 + 11840 + 1600 + memory.heap + 7


def test_gradient_checkpointing_keeps_the_layers_inputs_and_one_layer():
    """Inputs 2 x 10 x 8 x 2 = 320, one layer of 3760 kept and one worked with."""
    memory = training_memory(SHAPE, Work(10, 4, 30), longest=6, gradient_checkpointing=True)
    assert memory.activations == 320 + 3760 + 3760 + 128 + 432


def test_padded_logits_are_alive_all_at_once():
    work = Work(read=4_000_000, predicted=4_000_000)
    packed, padded = (training_memory(SHAPE, work, 6, packing=packing).logits for packing in (True, False))
    assert packed == (1 << 23) * 8
    assert padded == 4_000_000 * 50 * 10


# --- time and shape -----------------------------------------------------------------------------------------


def test_seconds_by_hand():
    """1000 FLOP/s and 100 bytes/s: kept 2 layers x 10 tokens x 376 bytes, passed over 8 times, in scoring 4 times."""
    work, rates = Work(10, 4, 30), Rates(matmul=1000, elementwise=100)
    assert training_seconds(SHAPE, work, rates) == pytest.approx(training_flops(SHAPE, work) / 1000 + 8 * 7520 / 100)
    assert scoring_seconds(SHAPE, work, rates) == pytest.approx(scoring_flops(SHAPE, work) / 1000 + 4 * 7520 / 100)


@pytest.mark.parametrize(
    "lora",
    [LoraSection(r=4), LoraSection(r=4, target_modules=["q_proj", "v_proj"]), None],
    ids=["all", "q and v", "none"],
)
def test_shape_of_the_tiny_model(tiny_model, lora):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    shape = model_shape(tiny_model, ModelSection(str(tiny_model), dtype="float32"), lora)
    assert shape.parameters == model.num_parameters()
    assert shape.body == sum(p.numel() for p in model.model.layers.parameters()) + model.model.norm.weight.numel()
    assert (shape.layers, shape.hidden, shape.intermediate, shape.heads) == (2, 64, 128, 4)
    assert (shape.queries, shape.keys, shape.vocabulary, shape.bytes) == (64, 32, model.config.vocab_size, 4)
    if lora is None:
        assert shape.trainable == shape.parameters
    elif lora.target_modules == ["q_proj", "v_proj"]:
        assert shape.trainable == 2 * 4 * ((64 + 64) + (64 + 32))
    else:  # q, k, v, o, gate, up, down
        widths = (64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128)
        assert shape.trainable == 2 * 4 * widths


def test_adapters_that_fit_nowhere_are_refused(tiny_model):
    with pytest.raises(InputError, match="no_such_module"):
        model_shape(tiny_model, ModelSection(str(tiny_model)), LoraSection(target_modules=["no_such_module"]))
