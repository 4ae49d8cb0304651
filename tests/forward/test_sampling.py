"""Tokens drawn from logits, against the distribution function in its plainest form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modpo.base.errors import NumericError
from modpo.forward.sampled import SamplingSettings
from modpo.forward.sampling import BLOCK, sample_tokens, uniforms


def plain_draw(logits: Tensor, at: Tensor, temperature: float = 1.0) -> Tensor:
    """The first token up to which the distribution function is beyond `at`."""
    up_to = (logits.double() / temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(up_to, at[:, None] * up_to[:, -1:], right=True)[:, 0]


@pytest.mark.parametrize("vocabulary", [5, BLOCK, BLOCK + 1, 3000])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 3.0])
def test_draws_are_those_of_the_distribution_function(vocabulary: int, temperature: float) -> None:
    torch.manual_seed(0)
    logits = 4 * torch.randn(400, vocabulary, dtype=torch.float64)
    at = torch.rand(400, dtype=torch.float64)
    tokens, logps = sample_tokens(logits, at, temperature)
    assert tokens.tolist() == plain_draw(logits, at, temperature).tolist()
    expected = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]  # at temperature 1, whatever was drawn at
    torch.testing.assert_close(logps, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(2000, 700)).to(dtype)
    at = torch.rand(2000, dtype=torch.float64)
    tokens, logps = sample_tokens(logits, at)
    assert (tokens == plain_draw(logits, at)).float().mean() > 0.999  # rounding decides at an edge
    torch.testing.assert_close(logps, logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0])


def test_a_word_that_cannot_come_never_comes() -> None:
    """Also at both ends of the unit interval, where sums are rounded."""
    logits = torch.full((4, 2 * BLOCK + 3), float("-inf"))
    logits[:, [7, BLOCK + 2]] = 0.0
    at = torch.tensor([0.0, 0.4999, 0.5001, 1 - 2**-53], dtype=torch.float64)
    assert sample_tokens(logits, at)[0].tolist() == [7, 7, BLOCK + 2, BLOCK + 2]


def test_frequencies_are_probabilities() -> None:
    """Within five standard errors, with the random numbers that answers get."""
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0])
    settings = SamplingSettings([0], 1)
    at = torch.cat([uniforms(settings, prompt, answer) for prompt in range(500) for answer in range(8)])
    tokens, _ = sample_tokens(logits.expand(len(at), -1), at)
    shares, probs = tokens.bincount(minlength=4) / len(at), logits.softmax(-1)
    assert ((shares - probs).abs() < 5 * (probs * (1 - probs) / len(at)).sqrt()).all()


def test_every_answer_has_numbers_of_its_own() -> None:
    def numbers(prompt: int, answer: int, **settings: int) -> tuple[float, ...]:
        return tuple(uniforms(SamplingSettings([0], 4, **settings), prompt, answer).tolist())

    assert numbers(3, 1) == numbers(3, 1) == numbers(1, 1, first_prompt=2)  # a shard goes on where one before ended
    drawn = {numbers(p, a, seed=s) for p in range(5) for a in range(5) for s in range(5)}
    assert len(drawn) == 125


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    with pytest.raises(NumericError, match="logits are not finite"):
        sample_tokens(logits, torch.tensor([0.5, 0.5], dtype=torch.float64))
