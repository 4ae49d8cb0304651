"""The loss: closed forms by hand, its two reformulations, its gradient. Its optimum: test_theory.py."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modpo.training.loss import (
    LOSS_TYPES,
    anchor_loss,
    effective_beta,
    modpo_loss,
    regression_loss,
    shift_reference,
    weighted_rewards,
)

relaxed = settings(deadline=None, max_examples=60)


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def one_pair(margins: tuple[list[float], list[float]], **settings):
    """Chosen: log pi -4, log pi_ref -5. Rejected: log pi -7, log pi_ref -6. So D is 1 and -1."""
    chosen, rejected = (torch.tensor([side], dtype=torch.float64).reshape(1, len(side)) for side in margins)
    return modpo_loss(column(-4), column(-7), column(-5), column(-6), chosen, rejected, **settings)


# --- closed forms ---------------------------------------------------------------------------------------------


def test_one_objective_is_dpo():
    """K = 1, beta 0.5: h = 0.5 * (1 - (-1)) = 1, loss -log sigmoid(1) = log(1 + 1/e); rewards 0.5 and -0.5."""
    losses, chosen, rejected = one_pair(([], []), weights=(1.0,), beta=0.5)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-1))], rel=1e-12)
    assert (chosen.item(), rejected.item()) == (0.5, -0.5)


def test_the_anchor_sees_the_sum_alone():
    """D is -3 and -1, beta 0.5: 1/2 (0.5 * -2)^2 = 1/2; a difference that grows around the same mean costs nothing."""
    assert anchor_loss(column(-8), column(-7), column(-5), column(-6), beta=0.5).tolist() == [0.5]
    assert anchor_loss(column(-3), column(-12), column(-5), column(-6), beta=0.5).tolist() == [0.5]
    assert anchor_loss(column(-2), column(-9), column(-5), column(-6), beta=0.5).tolist() == [0.0]


def test_the_anchor_s_gradient_is_the_same_for_both():
    """d/dlogp = beta^2 (D(chosen) + D(rejected)) / 4."""
    logps = [column(-8).requires_grad_(), column(-7).requires_grad_()]
    anchor_loss(*logps, column(-5), column(-6), beta=0.5).sum().backward()
    assert [logp.grad.item() for logp in logps] == pytest.approx([-0.25, -0.25])


def test_two_objectives():
    """w = (0.25, 0.75), beta 0.5, margin reward 2 and 1.

    h = (0.5 * 1 - 0.5 * (-1) - 0.75 * (2 - 1)) / 0.25 = (1 - 0.75) / 0.25 = 1.
    Rewards of k: (0.5 - 0.75 * 2) / 0.25 = -4 and (-0.5 - 0.75 * 1) / 0.25 = -5, whose difference is h.
    """
    losses, chosen, rejected = one_pair(([2.0], [1.0]), weights=(0.25, 0.75), beta=0.5)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-1))], rel=1e-12)
    assert (chosen.item(), rejected.item()) == (-4.0, -5.0)


def test_three_objectives():
    """w = (0.5, 0.2, 0.3), beta 1, margin differences (4 - 1, 0 - 2) = (3, -2).

    h = (1 + 1 - 0.2 * 3 + 0.3 * 2) / 0.5 = 2 / 0.5 = 4.
    Rewards of k: (1 - 0.2 * 4 - 0.3 * 0) / 0.5 = 0.4 and (-1 - 0.2 * 1 - 0.3 * 2) / 0.5 = -3.6.
    """
    losses, chosen, rejected = one_pair(([4.0, 0.0], [1.0, 2.0]), weights=(0.5, 0.2, 0.3), beta=1.0)
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(-4))], rel=1e-12)
    assert (chosen.item(), rejected.item()) == pytest.approx((0.4, -3.6), rel=1e-12)


def test_weighted_rewards():
    """beta D, D = -4 + 5 and -7 + 6, of all objectives together: no margin is taken off."""
    assert weighted_rewards(column(-4, -7), column(-5, -6), beta=0.5).tolist() == [0.5, -0.5]


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (0.0, 0.0),  # h = 2 / 0.5 = 4: behind the hinge
        (1.5, 0.0),  # h = (2 - 0.5 * 1.5 * 2) / 0.5 = 1: at the hinge
        (2.0, 1.0),  # h = (2 - 0.5 * 2 * 2) / 0.5 = 0: loss 1 - 0
        (4.0, 5.0),  # h = (2 - 0.5 * 4 * 2) / 0.5 = -4: loss 1 + 4
    ],
)
def test_hinge(margin: float, expected: float):
    """w = (0.5, 0.5), beta 1, margin rewards +margin and -margin: h = (2 - 0.5 * 2 margin) / 0.5."""
    losses, chosen, rejected = one_pair(([margin], [-margin]), weights=(0.5, 0.5), beta=1.0, loss_type="hinge")
    assert losses.tolist() == pytest.approx([expected], abs=1e-12)
    assert (chosen.item(), rejected.item()) == pytest.approx((2 - margin, -2 + margin))


def test_an_extreme_pair_neither_overflows_nor_vanishes():
    """-log sigmoid(h) -> -h for h -> -inf: 1e6 nats stay 1e6, and the gradient stays 1."""
    policy_chosen = torch.tensor([-1e6], requires_grad=True)
    zero, none = torch.zeros(1), torch.zeros(1, 0)
    losses, _, _ = modpo_loss(policy_chosen, zero, zero, zero, none, none, weights=(1.0,), beta=1.0)
    losses.sum().backward()
    assert losses.item() == 1e6
    assert policy_chosen.grad.item() == -1


def test_rewards_are_detached_and_the_loss_is_not():
    logps = torch.zeros(3, requires_grad=True)
    losses, chosen, rejected = modpo_loss(
        logps, logps - 1, torch.zeros(3), torch.zeros(3), torch.zeros(3, 0), torch.zeros(3, 0), weights=(1,), beta=0.1
    )
    assert losses.requires_grad
    assert not chosen.requires_grad
    assert not rejected.requires_grad


# --- properties ----------------------------------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Tensor], Tensor, float]:
    """Random log-probs (4 of them, (B,)) and margins (2, (B, K-1)), weights (K,) on the simplex, beta."""
    B, K = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    raw = draw(st.lists(st.floats(0.02, 1), min_size=K, max_size=K))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = [10 * normal(B) - 30 for _ in range(4)] + [3 * normal(B, K - 1) for _ in range(2)]
    return tensors, torch.tensor(raw, dtype=torch.float64) / sum(raw), draw(st.floats(0.01, 2))


def dpo_loss(tensors: list[Tensor], beta: float, loss_type: str) -> Tensor:
    """DPO as written by its authors: arXiv 2305.18290, eq. (7)."""
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = tensors
    logits = beta * ((policy_chosen - policy_rejected) - (reference_chosen - reference_rejected))
    return -F.logsigmoid(logits) if loss_type == "sigmoid" else torch.relu(1 - logits)


@relaxed
@given(problem=problems(), loss_type=st.sampled_from(LOSS_TYPES))
def test_dpo_with_shifted_reference_and_effective_beta_is_modpo(problem, loss_type: str):
    """log pi_ref' = log pi_ref + (1/beta) sum_j w_j r_j and beta' = beta / w_k carry the margins into plain DPO."""
    (*logps, chosen_margins, rejected_margins), weights, beta = problem
    losses, _, _ = modpo_loss(*logps, chosen_margins, rejected_margins, weights=weights, beta=beta, loss_type=loss_type)
    shifted = [
        shift_reference(reference, margins, weights=weights, beta=beta)
        for reference, margins in zip(logps[2:], (chosen_margins, rejected_margins), strict=True)
    ]
    plain = dpo_loss([*logps[:2], *shifted], effective_beta(beta, weights), loss_type)
    torch.testing.assert_close(plain, losses, rtol=1e-12, atol=1e-12)


@relaxed
@given(problem=problems())
def test_swapping_chosen_and_rejected_negates_h(problem):
    """-log sigmoid(h) + log sigmoid(-h) = -h, so the two losses differ by h, which is odd under the swap."""
    (pc, pr, rc, rr, mc, mr), weights, beta = problem
    losses, *_ = modpo_loss(pc, pr, rc, rr, mc, mr, weights=weights, beta=beta)
    swapped, *_ = modpo_loss(pr, pc, rr, rc, mr, mc, weights=weights, beta=beta)
    h = (beta * (pc - rc) - beta * (pr - rr) - (mc - mr) @ weights[1:]) / weights[0]
    torch.testing.assert_close(swapped - losses, h, rtol=1e-9, atol=1e-9)


@relaxed
@given(problem=problems(), loss_type=st.sampled_from(LOSS_TYPES))
def test_rewards_are_the_estimate_of_objective_k(problem, loss_type: str):
    """They and the margin rewards, weighted, add up to beta D; the loss sees their difference alone."""
    (*logps, chosen_margins, rejected_margins), weights, beta = problem
    losses, chosen, rejected = modpo_loss(
        *logps, chosen_margins, rejected_margins, weights=weights, beta=beta, loss_type=loss_type
    )
    for k, margins, policy, reference in (
        (chosen, chosen_margins, logps[0], logps[2]),
        (rejected, rejected_margins, logps[1], logps[3]),
    ):
        of_all = torch.cat([k[:, None], margins], dim=1) @ weights
        torch.testing.assert_close(of_all, beta * (policy - reference), rtol=1e-9, atol=1e-9)
    h = chosen - rejected
    expected = -F.logsigmoid(h) if loss_type == "sigmoid" else torch.relu(1 - h)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-9)


@relaxed
@given(problem=problems(), loss_type=st.sampled_from(LOSS_TYPES))
def test_gradient_of_the_scaled_loss_is_at_most_beta(problem, loss_type: str):
    """d(w_k loss)/d log pi = -+ beta sigmoid(-h): at most beta, however small w_k is. Unscaled, up to beta / w_k."""
    (*logps, chosen_margins, rejected_margins), weights, beta = problem
    weights = weights.clone()
    weights[0] = 1e-6
    policy = [logp.requires_grad_() for logp in logps[:2]]
    losses, _, _ = modpo_loss(
        *policy, *logps[2:], chosen_margins, rejected_margins, weights=weights, beta=beta, loss_type=loss_type
    )
    for gradient in torch.autograd.grad((weights[0] * losses).sum(), policy):
        assert gradient.abs().max() <= beta * (1 + 1e-9)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("K", [1, 2, 3])
def test_gradient_against_finite_differences(loss_type: str, K: int):
    generator = torch.Generator().manual_seed(K)
    policy = [torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    others = [torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2)]
    margins = [torch.randn(4, K - 1, generator=generator, dtype=torch.float64) for _ in range(2)]
    weights = [1 / K] * K

    def losses(chosen: Tensor, rejected: Tensor) -> Tensor:
        return modpo_loss(chosen, rejected, *others, *margins, weights=weights, beta=0.7, loss_type=loss_type)[0]

    assert torch.autograd.gradcheck(losses, policy)


def test_regression_by_hand():
    """beta 0.5; D = 2 and -1, so 0.5 * 3 = 1.5; weighted rewards differ by 0.25 * 2 + 0.75 * (-4) = -2.5: off by 4."""
    logps = [torch.tensor([x]) for x in (1.0, -3.0, -1.0, -2.0)]
    rewards = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    losses, chosen, rejected = regression_loss(*logps, *rewards, weights=(0.25, 0.75), beta=0.5)
    assert (losses.item(), chosen.item(), rejected.item()) == (8.0, 1.0, -0.5)


# --- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": (0.0, 1.0)}, "w_k.* is 0 and must be above 0"),
        ({"weights": (-0.5, 1.5)}, "w_k.* is -0.5 and must be above 0"),
        ({"weights": (math.nan, 1.0)}, "w_k.* is nan and must be above 0"),
        ({"weights": ()}, r"weights must be K numbers, w_k first; got shape \(0,\)"),
        ({"weights": torch.ones(2, 1)}, r"weights must be K numbers, w_k first; got shape \(2, 1\)"),
        ({"weights": (0.5, 0.25, 0.25)}, r"chosen_margin_rewards has shape \(3, 1\), expected \(3, 2\)"),
        ({"weights": (1.0,)}, r"chosen_margin_rewards has shape \(3, 1\), expected \(3, 0\)"),
        ({"beta": 0.0}, "beta is 0.0 and must be above 0"),
        ({"beta": -0.1}, "beta is -0.1 and must be above 0"),
        ({"beta": math.nan}, "beta is nan and must be above 0"),
        ({"loss_type": "ipo"}, "loss_type is 'ipo'; use one of sigmoid, hinge"),
        ({"policy_chosen_logps": torch.zeros(3, 1)}, r"policy_chosen_logps has shape \(3, 1\), expected \(B,\)"),
        ({"policy_rejected_logps": torch.zeros(2)}, r"policy_rejected_logps has shape \(2,\), but .* has \(3,\)"),
        ({"reference_chosen_logps": torch.zeros(1)}, r"reference_chosen_logps has shape \(1,\)"),
        ({"reference_rejected_logps": torch.zeros(3, 3)}, r"reference_rejected_logps has shape \(3, 3\)"),
        ({"rejected_margin_rewards": torch.zeros(3)}, r"rejected_margin_rewards has shape \(3,\), expected \(3, 1\)"),
    ],
)
def test_refuses(change: dict, message: str):
    """Shapes are not broadcast: a (B, 1) among (B,) would silently give B * B losses."""
    logps = ["policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps"]
    margins = ["chosen_margin_rewards", "rejected_margin_rewards"]
    given = {name: torch.zeros(3) for name in logps} | {name: torch.zeros(3, 1) for name in margins}
    with pytest.raises(ValueError, match=message):
        modpo_loss(**(given | {"weights": (0.5, 0.5), "beta": 0.1} | change))


def test_reformulations_refuse_what_the_loss_refuses():
    zeros = [torch.zeros(3)] * 4
    with pytest.raises(ValueError, match="beta is 0"):
        regression_loss(*zeros, torch.zeros(3, 2), torch.zeros(3, 2), weights=(0.5, 0.5), beta=0)
    with pytest.raises(ValueError, match=r"chosen_rewards has shape \(3, 1\), expected \(3, 2\): .* 2 weights$"):
        regression_loss(*zeros, torch.zeros(3, 1), torch.zeros(3, 2), weights=(0.5, 0.5), beta=0.1)
    with pytest.raises(ValueError, match="must be above 0"):
        effective_beta(0.1, (0.0, 1.0))
    with pytest.raises(ValueError, match="beta is 0"):
        effective_beta(0, (0.5, 0.5))
    with pytest.raises(ValueError, match="must be above 0"):
        shift_reference(torch.zeros(3), torch.zeros(3, 1), weights=(0.0, 1.0), beta=0.1)
    with pytest.raises(ValueError, match="beta is 0"):
        shift_reference(torch.zeros(3), torch.zeros(3, 1), weights=(0.5, 0.5), beta=0)
    with pytest.raises(ValueError, match=r"margin_rewards has shape \(3, 2\), expected \(3, 1\)"):
        shift_reference(torch.zeros(3), torch.zeros(3, 2), weights=(0.5, 0.5), beta=0.1)
