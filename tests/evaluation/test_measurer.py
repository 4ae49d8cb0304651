"""What is measured of a policy, against the slow way, and how it is read back."""

from __future__ import annotations

import pytest
import torch

from modpo.experiment.sections import Experiment
from modpo.methods.sweep import finished_points


def test_kl_is_the_log_ratio_of_the_answers(copied: Experiment) -> None:
    """log pi(y|x) - log pi_ref(y|x), packed, against two plain forward passes with and without the adapter."""
    from modpo.data.groups import group_rows
    from modpo.data.sources import open_rows
    from modpo.evaluation.measurer import Measurer, Policy
    from modpo.forward.logprobs import padded_logps
    from modpo.models.reference import ReferenceModel

    point = next(finished_points(copied))
    reference = ReferenceModel(copied.model, copied.cache_dir)
    measurer = Measurer(copied, reference, group_rows(open_rows(copied.data.path)), {}, None)
    prompts, answers = [[5, 6, 7], [8, 9]], [[10, 11, 12, 13], [14, 15]]
    policy = Policy(point.name, point.weights, point.folder, point.files)
    with measurer._loaded(policy) as model:
        found = measurer._log_ratios(policy, model, prompts, answers)
        with torch.no_grad():
            ours = padded_logps(model, prompts, [[a] for a in answers])
            theirs = padded_logps(reference.model, prompts, [[a] for a in answers])
    assert (ours - theirs).abs().max() > 0.01  # training has moved the policy
    torch.testing.assert_close(torch.tensor(found), ours - theirs, atol=2e-3, rtol=1e-3)


def test_answers_with_any_character_are_read_back(copied: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    from modpo.data.loading import load_groups
    from modpo.evaluation.measurer import Measurer, reference_policy
    from modpo.models.reference import ReferenceModel

    strange = "one\u2028two\x85three\x1cfour"
    answer = {"policy": "reference", "prompt_index": 0, "prompt": "?", "response": strange, "tokens": 3, "kl": 0.0}
    answer["rewards"] = {"tokens": 7.0}  # an objective may be called like another number of the answer
    monkeypatch.setattr(Measurer, "_answers", lambda self, policy, model: [answer])
    _, held_out = load_groups(copied)
    reference = ReferenceModel(copied.model, copied.cache_dir)
    measured = Measurer(copied, reference, held_out, {}, None).measure(reference_policy())
    assert measured.answers == [answer]
    assert measured.scores("tokens").tolist() == [7.0]
    assert measured.numbers("tokens").tolist() == [3.0]
