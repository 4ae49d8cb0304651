"""Linear layers by copies of their weights, against the layers themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modpo.forward import prepacked as module
from modpo.forward.prepacked import is_prepackable, prepacked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 300])
@torch.no_grad()
def test_products_are_those_of_the_layers(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.SiLU(), nn.Linear(40, 16, bias=False)).to(dtype)
    x = torch.randn(1, rows, 24, dtype=dtype)
    expected = model(x)
    with prepacked(model):
        assert all("forward" in layer.__dict__ for layer in (model[0], model[2]))
        torch.testing.assert_close(model(x), expected)
    assert not any("forward" in layer.__dict__ or "packed_weight" in layer.__dict__ for layer in model)
    model[0].weight.zero_()  # the copies are gone: weights that change are seen
    model[0].bias.zero_()
    assert not model(x).any()


def test_only_plain_layers_in_known_formats() -> None:
    class Other(nn.Linear):
        pass

    assert is_prepackable(nn.Linear(3, 4))
    assert not is_prepackable(Other(3, 4))
    assert not is_prepackable(nn.Linear(3, 4).double())
    assert not is_prepackable(nn.Linear(3, 4, device="meta"))
    assert not is_prepackable(nn.LayerNorm(3))


def test_a_model_that_is_too_large_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 4 * 24 * 40 - 1)
    model = nn.Sequential(nn.Linear(24, 40))
    with prepacked(model):
        assert "forward" not in model[0].__dict__


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(24, 40))
    with pytest.raises(ZeroDivisionError), prepacked(model):
        raise ZeroDivisionError
    assert "forward" not in model[0].__dict__
