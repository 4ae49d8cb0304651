"""The MODPO loss and its reformulations, as pure functions of tensors.

Zhou et al., "Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization",
Findings of ACL 2024, arXiv 2310.03708. Objective k carries the preference pairs, the others enter as margins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modpo.experiment.sections import LOSS_TYPES

LOGPS = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")


def pair_logps(logps: Tensor, ref_logps: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs of pairs, as the losses below take them.

    Args:
        logps, ref_logps: log-probs of M responses under the policy and the reference, nats, (M,).
        pairs: indices of the chosen and the rejected response, (B, 2).

    Returns:
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: each (B,).
    """
    chosen, rejected = pairs.unbind(1)
    return logps[chosen], logps[rejected], ref_logps[chosen], ref_logps[rejected]


def modpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_margin_rewards: Tensor,
    rejected_margin_rewards: Tensor,
    *,
    weights: Sequence[float] | Tensor,
    beta: float,
    loss_type: str = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor]:
    """MODPO's loss for each preference pair.

    With D(y) = log pi(y|x) - log pi_ref(y|x) and margins r_j (paper, section 3.2, the loss L_MODPO):

        h = (beta D(chosen) - beta D(rejected) - sum_{j != k} w_j (r_j(chosen) - r_j(rejected))) / w_k
        sigmoid: -log sigmoid(h)        hinge: max(0, 1 - h)

    With K = 1 and weights (1,) this is DPO. Nothing is multiplied by w_k here.

    Args:
        policy_chosen_logps, policy_rejected_logps: log pi(y|x) summed over the response, nats, (B,).
        reference_chosen_logps, reference_rejected_logps: the same of the reference policy, (B,).
        chosen_margin_rewards, rejected_margin_rewards: r_j of the other objectives, (B, K-1).
        weights: (w_k, then the others in the margins' order), K numbers, w_k > 0.
        beta: strength of the KL penalty, > 0.
        loss_type: "sigmoid" or "hinge".

    Returns:
        losses, chosen_rewards, rejected_rewards: each (B,). The rewards are detached, and as the method's published
        listing has them the implicit estimate of r_k(x, y), up to a function of x:

            (beta D(y) - sum_{j != k} w_j r_j(x, y)) / w_k

        So h is their difference. `weighted_rewards` estimates the weighted sum of all objectives.

    Raises:
        ValueError: shapes that do not match, w_k <= 0, beta <= 0, an unknown loss_type.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type is {loss_type!r}; use one of {', '.join(LOSS_TYPES)}")
    w_k, w_others = _split_weights(weights, like=policy_chosen_logps)
    _check_beta(beta)
    logps = policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    _check_shapes(
        w_others,
        dict(zip(LOGPS, logps, strict=True)),
        {"chosen_margin_rewards": chosen_margin_rewards, "rejected_margin_rewards": rejected_margin_rewards},
    )
    chosen = weighted_rewards(policy_chosen_logps, reference_chosen_logps, beta=beta)  # (B,)
    rejected = weighted_rewards(policy_rejected_logps, reference_rejected_logps, beta=beta)  # (B,)
    margins = (chosen_margin_rewards - rejected_margin_rewards) @ w_others  # (B,)
    logits = (chosen - rejected - margins) / w_k  # L_MODPO; w = e_k is DPO
    losses = -F.logsigmoid(logits) if loss_type == "sigmoid" else torch.relu(1 - logits)
    chosen_rewards = (chosen - chosen_margin_rewards @ w_others) / w_k
    rejected_rewards = (rejected - rejected_margin_rewards @ w_others) / w_k
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def weighted_rewards(policy_logps: Tensor, reference_logps: Tensor, *, beta: float) -> Tensor:
    """beta D(y): the implicit estimate of the weighted sum of rewards sum_i w_i r_i(x, y), up to a function of x.

    Args:
        policy_logps, reference_logps: log pi(y|x) and log pi_ref(y|x), nats, any shape.

    Returns:
        The same shape. With one objective of weight 1 these are the rewards that `modpo_loss` returns.
    """
    return beta * (policy_logps - reference_logps)


def regression_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    *,
    weights: Sequence[float] | Tensor,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """MODPO's optimum by regression, of any two responses to a prompt: every objective enters by its reward.

        loss = 1/2 (beta D(y) - beta D(y') - sum_i w_i (r_i(y) - r_i(y')))^2

    The optimum of MORLHF is pi(y|x) = pi_ref(y|x) exp(sum_i w_i r_i(x, y) / beta) / Z(x) (paper, section 3.1). So
    there beta D(y) = sum_i w_i r_i(x, y) - beta log Z(x); in a difference of two responses Z cancels: the loss is 0.
    Where every two responses have a chance to be compared, it is 0 there only: differences that are all right fix
    beta D up to a function of x, and pi sums to 1. No objective needs pairs and no weight is divided by, so that
    w = e_j is allowed. Next to `modpo_loss` times w_k its gradient is of the same kind: beta times how far the
    difference is off, not bounded by beta.

    Args:
        policy_..., reference_...: as in `modpo_loss`, (B,); either of two responses may be called chosen.
        chosen_rewards, rejected_rewards: r_i of all objectives, (B, K).
        weights: K numbers in the rewards' order.
        beta: strength of the KL penalty, > 0.

    Returns:
        losses, chosen_rewards, rejected_rewards: each (B,). No objective is singled out here, so the rewards are
        `weighted_rewards`, detached.

    Raises:
        ValueError: shapes that do not match, beta <= 0.
    """
    _check_beta(beta)
    w = torch.as_tensor(weights, dtype=policy_chosen_logps.dtype, device=policy_chosen_logps.device)
    logps = policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    _check_shapes(
        w,
        dict(zip(LOGPS, logps, strict=True)),
        {"chosen_rewards": chosen_rewards, "rejected_rewards": rejected_rewards},
        columns="weights",
    )
    chosen = weighted_rewards(policy_chosen_logps, reference_chosen_logps, beta=beta)  # (B,)
    rejected = weighted_rewards(policy_rejected_logps, reference_rejected_logps, beta=beta)  # (B,)
    off = chosen - rejected - (chosen_rewards - rejected_rewards) @ w  # (B,)
    return off.square() / 2, chosen.detach(), rejected.detach()


def anchor_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
) -> Tensor:
    """A pull of a pair's mean log-ratio towards the reference, which a loss of differences leaves free.

        1/2 (beta (D(chosen) + D(rejected)) / 2)^2

    Both losses above see beta (D(chosen) - D(rejected)) alone, and are as content where both responses have become
    e^13 times less likely: what DPO's gradient does of itself when the two share tokens, and where the probability goes
    instead nobody has compared. At the optimum D is small for responses that the reference policy gave: its mean over
    them is -KL(pi_ref || pi). It is not 0, so a strong pull moves the optimum: this is no part of MODPO.

    Args:
        policy_..., reference_...: as in `modpo_loss`, (B,). beta: strength of the KL penalty, > 0.

    Returns:
        (B,).

    Raises:
        ValueError: beta <= 0.
    """
    _check_beta(beta)
    chosen, rejected = policy_chosen_logps - reference_chosen_logps, policy_rejected_logps - reference_rejected_logps
    return (beta * (chosen + rejected) / 2).square() / 2


def effective_beta(beta: float, weights: Sequence[float] | Tensor) -> float:
    """The beta with which a plain DPO loss on `shift_reference`'s log-probs equals MODPO's: beta / w_k."""
    w_k, _ = _split_weights(weights)
    _check_beta(beta)
    return beta / float(w_k)


def shift_reference(
    reference_logps: Tensor, margin_rewards: Tensor, *, weights: Sequence[float] | Tensor, beta: float
) -> Tensor:
    """Reference log-probs that turn a plain DPO loss into MODPO's.

        log pi_ref'(y|x) = log pi_ref(y|x) + (1/beta) sum_{j != k} w_j r_j(x, y)

    Then modpo_loss(..., weights, beta) = dpo_loss(..., log pi_ref', beta / w_k), for losses that are functions of
    beta * (D(chosen) - D(rejected)) alone.

    Args:
        reference_logps: (B,). margin_rewards: (B, K-1). weights, beta: as in `modpo_loss`.

    Returns:
        (B,).
    """
    _, w_others = _split_weights(weights, like=reference_logps)
    _check_beta(beta)
    _check_shapes(w_others, {"reference_logps": reference_logps}, {"margin_rewards": margin_rewards})
    return reference_logps + margin_rewards @ w_others / beta


def _split_weights(weights: Sequence[float] | Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(w_k, the other weights (K-1,)), in the dtype and on the device of `like`."""
    w = torch.as_tensor(weights, dtype=torch.float64) if not isinstance(weights, Tensor) else weights
    if w.dim() != 1 or len(w) == 0:
        raise ValueError(f"weights must be K numbers, w_k first; got shape {tuple(w.shape)}")
    if like is not None:
        w = w.to(dtype=like.dtype, device=like.device)
    if not w[0] > 0:
        raise ValueError(
            f"w_k, the weight of the objective whose pairs are trained on, is {float(w[0]):g} and must be above 0: "
            "train on the pairs of an objective with a positive weight"
        )
    return w[0], w[1:]


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta is {beta} and must be above 0")


def _check_shapes(
    w_others: Tensor, logps: dict[str, Tensor], margins: dict[str, Tensor], columns: str = "weights after w_k"
) -> None:
    """Refuse log-probs that are not all (B,), and rewards that are not (B, C) for C weights, by name."""
    first, *rest = logps
    B = logps[first].shape
    if len(B) != 1:
        raise ValueError(f"{first} has shape {tuple(B)}, expected (B,)")
    for name in rest:
        if logps[name].shape != B:
            raise ValueError(f"{name} has shape {tuple(logps[name].shape)}, but {first} has {tuple(B)}")
    expected = (*B, len(w_others))
    for name, margin in margins.items():
        if margin.shape != expected:
            raise ValueError(
                f"{name} has shape {tuple(margin.shape)}, expected {expected}: one column for each of the "
                f"{len(w_others)} {columns}"
            )
