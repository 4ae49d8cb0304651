"""Best of n: of n answers of the reference policy the one with the largest weighted reward. Nothing is trained.

    KL(best of n || reference) <= log n - (n - 1) / n

with equality where no two answers have the same reward (Beirami et al., "Theoretical guarantees on the best-of-n
alignment policy", arXiv 2401.01879). The price is paid at every answer: n are sampled and scored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.decode import decode
from modpo.publish import sha256_json
from modpo.simplex import Weights

if TYPE_CHECKING:
    from modpo.measure import Measurer, Policy

FILE = "best_of_n.json"
POOL = "best_of_n"  # the reference's answers that all vectors choose from, beside the policies in `evaluation`


@dataclass(frozen=True)
class BestOfN:
    """What the folder of such a policy says."""

    n: int
    weights: Weights

    @property
    def kl_bound(self) -> float:
        """The most that it can differ from the reference, nats per answer."""
        return math.log(self.n) - (self.n - 1) / self.n

    def choose(self, margins: Mapping[str, Sequence[float]]) -> list[int]:
        """Of every n answers that follow one another the best one's index, the first of those that are as good.

        Args:
            margins: calibrated rewards of M answers with their direction, by objective; M is a multiple of n.
        """
        active = [(weight, margins[name]) for name, weight in self.weights.items() if weight > 0]
        sums = [sum(weight * scores[i] for weight, scores in active) for i in range(len(active[0][1]))]
        return [max(range(start, start + self.n), key=sums.__getitem__) for start in range(0, len(sums), self.n)]


def read_best_of_n(folder: Path) -> BestOfN | None:
    """How a point's folder decodes, None where it holds a policy of its own."""
    path = folder / FILE
    return decode(BestOfN, json.loads(path.read_text("utf-8"))) if path.is_file() else None


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
