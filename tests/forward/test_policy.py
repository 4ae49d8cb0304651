"""pi and pi_ref of a trained point, against plain forward passes."""

from __future__ import annotations

import pytest
import torch

from modpo.experiment.sections import Experiment
from modpo.forward.logprobs import padded_logps
from modpo.forward.policy import Policy
from modpo.methods.sweep import finished_points
from modpo.models.reference import ReferenceModel

PROMPTS, ANSWERS = [[5, 6, 7], [8, 9]], [[[10, 11, 12, 13]], [[14, 15]]]


@pytest.mark.parametrize("merged", [True, False])
def test_log_ratios_are_those_of_two_plain_passes(copied: Experiment, merged: bool) -> None:
    """log pi(y|x) - log pi_ref(y|x), packed, against the policy and then the base read plainly."""
    reference = ReferenceModel.of(copied)
    policy = Policy(reference, next(finished_points(copied)).folder)
    with policy.loaded(merged=merged) as model:
        found = policy.log_ratios(model, PROMPTS, ANSWERS, packing=True)
        with torch.no_grad():
            ours = padded_logps(model, PROMPTS, ANSWERS)
    with torch.no_grad():  # the base is what it was, once the adapter is off
        theirs = padded_logps(reference.model, PROMPTS, ANSWERS)
    assert (ours - theirs).abs().max() > 0.01  # training has moved the policy
    torch.testing.assert_close(torch.tensor(found), ours - theirs, atol=2e-3, rtol=1e-3)


def test_the_reference_is_no_nat_away_from_itself(copied: Experiment) -> None:
    policy = Policy(ReferenceModel.of(copied))
    with policy.loaded() as model:
        assert policy.log_ratios(model, PROMPTS, ANSWERS, packing=True) == [0.0, 0.0]
