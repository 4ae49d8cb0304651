"""Which answers best of n gives to the held-out prompts."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from modpo.base.files import sha256_json
from modpo.policies.best_of_n import BestOfN

if TYPE_CHECKING:
    from modpo.evaluation.measurer import Measurer, Policy

POOL = "best_of_n"  # the reference's answers that all vectors choose from, beside the policies in `evaluation`


def chosen_answers(measurer: Measurer, policy: Policy, best: BestOfN) -> list[dict[str, Any]]:
    """The lines of responses.jsonl of the answers that are chosen from the pool."""
    experiment = measurer.experiment
    candidates = _pool(measurer, best).measure(_pool_policy(policy)).answers
    margins = {
        name: [calibration.apply(c["rewards"][name], experiment.objectives[name].sign) or 0.0 for c in candidates]
        for name, calibration in measurer.calibrations.items()
    }
    chosen = [candidates[i] for i in best.choose(margins)]
    rewards = measurer.score([c["prompt_index"] for c in chosen], [c["response"] for c in chosen])
    return [
        {
            **candidate,
            "policy": policy.name,
            "weights": policy.weights,
            "rewards": {name: values[i] for name, values in rewards.items()},
            "kl": best.kl_bound,  # of one answer it is not known
            "sampled_tokens": sum(c["tokens"] for c in candidates[i * best.n : (i + 1) * best.n]),
        }
        for i, candidate in enumerate(chosen)
    ]


def choice_key(measurer: Measurer, policy: Policy, best: BestOfN) -> str:
    """What decides which answers are chosen, besides the vector."""
    signs = {name: objective.sign for name, objective in measurer.experiment.objectives.items()}
    calibrations = {name: asdict(calibration) for name, calibration in measurer.calibrations.items()}
    pool = _pool(measurer, best).key(_pool_policy(policy))
    return sha256_json({"pool": pool, "signs": signs, "calibrations": calibrations})


def _pool(measurer: Measurer, best: BestOfN) -> Measurer:
    """Measures n answers for each that is wanted, by the rewards that are trained on."""
    experiment = measurer.experiment
    samples = experiment.evaluation.samples_per_prompt * best.n
    evaluation = replace(experiment.evaluation, samples_per_prompt=samples)
    many = replace(experiment, evaluation=evaluation)
    return replace(measurer, experiment=many, rewards=measurer.trained_on, scored=None, audited=None)


def _pool_policy(policy: Policy) -> Policy:
    return replace(policy, name=POOL, weights=None, folder=None, files={}, decoding=None)
