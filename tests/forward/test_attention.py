"""Block attention against plain softmax attention with the dense mask, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from modpo.forward import attention, branches
from modpo.forward.attention import BlockAttention, packed_attention, packed_attention_forward
from modpo.forward.packing import PackedLayout, pack

CPU = torch.device("cpu")

relaxed = settings(deadline=None, max_examples=40)

# Prompt and response lengths of each group. A response of 1 token reads nothing.
SMALL = [(3, (4, 1, 2)), (1, (1,)), (5, ()), (2, (6,))]
LARGE = [(9, (14, 6, 1, 2)), (2, (3, 1)), (1, (17,)), (13, (1, 1)), (4, (5,)), (6, ())]


def layout(lengths: list[tuple[int, tuple[int, ...]]]) -> PackedLayout:
    return pack([[0] * prompt for prompt, _ in lengths], [[[0] * n for n in rs] for _, rs in lengths]).layout


@pytest.fixture
def branches_of_4(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Branches of 4 rows, so that short groups take the path of long ones. Plans are remembered by layout."""
    branches.plan.cache_clear()
    monkeypatch.setattr(branches, "BRANCH_ROWS", 4)
    yield
    branches.plan.cache_clear()


def inputs(length: int, heads: int, kv_heads: int, dtype: torch.dtype = torch.float64, D: int = 6) -> list[Tensor]:
    """q (H, T, D), k and v (H_kv, T, D)."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(heads, length, D), (kv_heads, length, D), (kv_heads, length, D)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def dense_attention(q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout) -> Tensor:
    """softmax(q k) v over the whole row at once, hidden scores at -inf: (T, H, D)."""
    group = len(q) // len(k)
    k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
    scores = (q @ k.transpose(1, 2)).masked_fill(~layout.dense_mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1)


def compare_with_dense(layout: PackedLayout, heads: int, kv_heads: int) -> None:
    given = inputs(layout.length, heads, kv_heads)
    weight = torch.randn(layout.length, heads, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fast, slow = BlockAttention.apply(*given, layout), dense_attention(*given, layout)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    fast_gradients = torch.autograd.grad((fast * weight).sum(), given)
    slow_gradients = torch.autograd.grad((slow * weight).sum(), given)
    for found, expected in zip(fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("lengths", [SMALL, LARGE], ids=["small", "large"])
def test_equals_dense_attention(lengths, heads: int, kv_heads: int):
    compare_with_dense(layout(lengths), heads, kv_heads)


@pytest.mark.usefixtures("branches_of_4")
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("lengths", [SMALL, LARGE], ids=["small", "large"])
def test_equals_dense_attention_in_branches_of_4(lengths, heads: int, kv_heads: int):
    compare_with_dense(layout(lengths), heads, kv_heads)


@pytest.mark.parametrize(
    "lengths",
    [[(300, (150, 2, 129))], [(128, (2,))], [(127, (2,)), (128, (1,)), (129, (130,))], [(1, (257, 258))]],
    ids=["long prompt and responses", "one row over a branch", "at the edges of a branch", "long responses"],
)
def test_equals_dense_attention_over_many_real_branches(lengths):
    """Branches of 128 rows as they are in use."""
    compare_with_dense(layout(lengths), heads=2, kv_heads=1)


@pytest.mark.usefixtures("branches_of_4")
@pytest.mark.parametrize("lengths", [[(3, (3, 1, 2))], [(6, (7, 2)), (1, (2,))]], ids=["whole groups", "branches"])
def test_gradient_against_finite_differences(lengths):
    row = layout(lengths)
    given = inputs(row.length, heads=2, kv_heads=1, D=3)
    assert torch.autograd.gradcheck(lambda q, k, v: BlockAttention.apply(q, k, v, row), given)


@pytest.mark.usefixtures("branches_of_4")
def test_bfloat16_is_as_close_to_the_truth_as_dense_attention_in_bfloat16():
    """Both round; block attention's gradients, summed in float32, must not be further off than twice the plain ones."""
    row = layout(LARGE)
    exact = inputs(row.length, heads=4, kv_heads=2)
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    exact = [tensor.detach().double().requires_grad_() for tensor in rounded]

    def results(function, tensors: list[Tensor]) -> list[Tensor]:
        out = function(*tensors)
        return [out, *torch.autograd.grad(out.double().sum(), tensors)]

    truth = results(lambda *qkv: dense_attention(*qkv, row), exact)
    plain = results(lambda *qkv: dense_attention(*qkv, row), rounded)
    fast = results(lambda *qkv: BlockAttention.apply(*qkv, row), rounded)
    for found, reference, expected in zip(fast, plain, truth, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found - expected).norm() <= 2 * (reference - expected).norm() + 1e-3 * expected.norm()


@pytest.mark.usefixtures("branches_of_4")
def test_a_prompt_s_bfloat16_gradient_is_rounded_once():
    """400 responses of 3 tokens after a prompt of 1: with q = 0 their rows see 2 and 3 keys alike, so d v of the prompt
    is 1 + 400 (1/2 + 1/3) = 334.33. Summed in bfloat16, it would stop at 256, where adding 5/6 changes nothing.
    """
    row = layout([(1, (3,) * 400)])
    q, k, v = (torch.zeros(1, row.length, 2, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    BlockAttention.apply(q, k, v, row).sum().backward()
    assert v.grad[0, 0].tolist() == pytest.approx([1 + 400 * 5 / 6] * 2, rel=0.005)


# --- as transformers calls it -----------------------------------------------------------------------------------


def call(layout: PackedLayout | None, **arguments) -> Tensor:
    T = layout.length if layout else 4
    q, k, v = (tensor[None].detach() for tensor in inputs(T, 4, 2, torch.float32))
    arguments = {"attention_mask": None, "packed": layout} | arguments
    return packed_attention_forward(nn.Module(), q, k, v, **arguments)[0]


def test_scales_by_the_head_size_unless_told_otherwise():
    """D = 6: the default is 1 / sqrt(6)."""
    row = layout(SMALL)
    q, k, v = inputs(row.length, 4, 2, torch.float32)
    assert call(row).shape == (1, row.length, 4, 6)
    torch.testing.assert_close(call(row)[0], dense_attention(q * 6**-0.5, k, v, row))
    torch.testing.assert_close(call(row, scaling=0.5)[0], dense_attention(q * 0.5, k, v, row))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"packed": None}, "without a packed row: call the model through modpo.forward.logprobs"),
        ({"dropout": 0.1}, "no dropout; fix: set attention_dropout to 0, or `packing: false`"),
        ({"sliding_window": 128}, "does not know sliding_window; fix: set `packing: false`"),
        ({"softcap": 50.0, "s_aux": torch.zeros(4)}, "does not know softcap, s_aux"),
        ({"attention_mask": torch.zeros(1, 1, 4, 4)}, "does not know attention_mask"),
    ],
)
def test_refuses_what_it_would_ignore(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        call(layout(SMALL), **arguments)


def test_arguments_that_are_none_are_no_obstacle():
    assert call(layout(SMALL), sliding_window=None, softcap=None, dropout=0.0).isfinite().all()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_model_is_as_before_outside_the_context(implementation: str):
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(implementation)
    with packed_attention(model):
        assert model.config._attn_implementation == attention.IMPLEMENTATION
        with pytest.raises(ValueError, match="without a packed row"):
            model(input_ids=torch.tensor([[1, 2]]))
    assert model.config._attn_implementation == implementation

    def fail_inside() -> None:
        with packed_attention(model):
            raise RuntimeError("an error inside")

    with pytest.raises(RuntimeError, match="an error inside"):
        fail_inside()
    assert model.config._attn_implementation == implementation
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, 8)


# --- on a GPU, seen from a CPU --------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [SMALL, LARGE, [(130, (140, 1, 20))]], ids=["small", "large", "many tiles"])
def test_flex_mask_is_the_dense_mask(lengths):
    row = layout(lengths)
    attention._flex_mask.cache_clear()
    visible = attention._flex_mask(row, CPU).mask_mod
    position = torch.arange(row.length)
    zero = torch.zeros((), dtype=torch.long)
    assert torch.equal(visible(zero, zero, position[:, None], position[None]), row.dense_mask)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_flex_attention_equals_dense_attention(monkeypatch: pytest.MonkeyPatch, heads: int, kv_heads: int):
    """The call that a GPU makes, uncompiled: scale, grouped heads and the mask arrive where they should."""
    monkeypatch.setattr(attention, "_compiled", lambda function: function)
    row = layout(LARGE)
    q, k, v = (tensor.detach() for tensor in inputs(row.length, heads, kv_heads, torch.float32, D=16))
    found = attention._flex_attention(q[None], k[None], v[None], row, scaling=0.3)
    torch.testing.assert_close(found[0], dense_attention(q * 0.3, k, v, row), rtol=1e-4, atol=1e-5)
