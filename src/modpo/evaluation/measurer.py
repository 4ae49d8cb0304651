"""One policy measured: its answers to held-out prompts, their rewards, and how far it is from the reference.

    <output>/evaluation/<name>/     see `measured`
    <cache>/evaluation/<key>/reference/     the same of the reference, which all sweeps share
    <cache>/evaluation/<key>/best_of_n/     answers of the reference from which best of n chooses

Kept under a key of policy, prompts and settings, so that measuring again measures only what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from modpo.base.artifact import Artifact
from modpo.base.files import locked, remove_leftovers, sha256_json
from modpo.evaluation.answers import Answers, Questions
from modpo.evaluation.measured import Measured, read_or_measure
from modpo.experiment.sections import Resolved
from modpo.forward.policy import Policy, flat_logps
from modpo.models.folders import TRAINING_LOG, device
from modpo.policies.best_of_n import BestOfN
from modpo.policies.point import SweptPoint
from modpo.rewards.batch import Reward
from modpo.scored.calibration import Calibration
from modpo.scored.columns import Column
from modpo.scored.data import PAIRS_PREFIX, REWARD_PREFIX, ScoredData

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

POOL = "best_of_n"  # the answers that all vectors of best of n choose from
ROUNDING = 1e-6  # log-probs of one model read twice differ by rounding: a difference that small is a tie


@dataclass(frozen=True)
class Measurer:
    """Measures policies on the same prompts with the same settings.

    Args:
        questions: the held-out prompts, and how they are answered.
        rewards: the scorers that can score new text, by objective: see `measuring_rewards`.
        scored: the held-out responses, for objectives that cannot; None when there are none.
        calibrations: of the rewards, as they were fitted for training.
        trained_on: the objectives' own rewards, by which best of n chooses.
        audited: answers to held-out prompts, several to each, on which policies are audited; None: they are not.
    """

    experiment: Resolved
    questions: Questions
    rewards: Mapping[str, Reward]
    scored: ScoredData | None
    calibrations: Mapping[str, Calibration]
    trained_on: Mapping[str, Reward]
    audited: ScoredData | None = None

    def measure(self, point: SweptPoint) -> Measured:
        """The policy's numbers, read back where they are there already."""
        best = point.best_of_n
        measure = partial(self._choose, point, best) if best else partial(self._answer, point)
        parts = self.parts(point)
        if point.folder is None:
            return self._shared(point.name, parts, measure)
        folder = self.experiment.output_dir / "evaluation" / point.name
        return read_or_measure(Artifact(folder, parts, replaceable=True), measure)

    def _shared(self, name: str, parts: Mapping[str, Any], measure: Callable[[], Measured]) -> Measured:
        """What depends on the reference alone, in the cache."""
        folder = self.experiment.cache_dir / "evaluation" / sha256_json(parts)
        with locked(folder, wait=True):
            remove_leftovers(folder)
            return read_or_measure(Artifact(folder / name, parts, replaceable=True), measure)

    def parts(self, point: SweptPoint) -> dict[str, Any]:
        """What decides a policy's numbers, by name."""
        parts = {
            **self.questions.parts(),
            "policy": {name: digest for name, digest in point.files.items() if name != TRAINING_LOG},
            "rewards": {name: reward.identity for name, reward in self.rewards.items()},
            "agreement": {name: column.key for name, column in self._agreement_columns.items()},
            "audited": self.audited.tokens.key if self.audited and point.folder else None,
        }
        best = point.best_of_n
        return {**parts, "chosen": self._choice_key(best)} if best else parts

    # --- a policy that answers by itself ------------------------------------------------------------------------

    def _answer(self, point: SweptPoint) -> Measured:
        questions = self.questions
        policy = Policy(questions.reference, point.folder)
        with policy.loaded(merged=device() == "cpu") as model:
            lines = self._lines(point, questions.sampled(policy, model, point.name))
            agreements = self._agreements(point, model)
            audited = self.audited.dataset() if self.audited and point.folder else None
            ratios = self._ratios(model, audited, f"audit of {point.name}") if audited is not None else []
            return Measured(lines, agreements, ratios)

    def _lines(self, point: SweptPoint, answers: Answers) -> list[dict[str, Any]]:
        scores = self.questions.scores(answers, self.rewards)
        return answers.lines(point.name, point.weights, self.questions.prompts, scores)

    def _ratios(self, model: PreTrainedModel | PeftModel, data: Any, label: str) -> list[list[float]]:
        """log pi - log pi_ref of scored responses, by prompt, nats."""
        prompts_ids, responses_ids, packing = data["prompt_ids"][:], data["responses_ids"][:], self.questions.packing
        flat = iter(flat_logps(model, prompts_ids, responses_ids, packing=packing, label=label))
        return [[next(flat) - ref for ref in ref_logps] for ref_logps in data["ref_logps"]]

    # --- best of n ----------------------------------------------------------------------------------------------

    def _choose(self, point: SweptPoint, best: BestOfN) -> Measured:
        """Of every n answers of the reference the one with the largest weighted reward of those trained on."""
        candidates = self._shared(POOL, self._pool_parts(best), partial(self._fill_pool, best)).answers
        margins = {
            name: [
                calibration.apply(c["rewards"][name], self.experiment.objectives[name].sign) or 0.0 for c in candidates
            ]
            for name, calibration in self.calibrations.items()
        }
        return Measured(self._lines(point, Answers.read(candidates).chosen(best, margins)))

    def _fill_pool(self, best: BestOfN) -> Measured:
        questions = self.questions.times(best.n)
        policy = Policy(questions.reference)
        with policy.loaded() as model:
            answers = questions.sampled(policy, model, POOL)
        return Measured(answers.lines(POOL, None, questions.prompts, questions.scores(answers, self.trained_on)))

    def _pool_parts(self, best: BestOfN) -> dict[str, Any]:
        rewards = {name: reward.identity for name, reward in self.trained_on.items()}
        parts = {"policy": {}, "rewards": rewards, "agreement": {}, "audited": None}
        return {**self.questions.times(best.n).parts(), **parts}

    def _choice_key(self, best: BestOfN) -> str:
        """What decides which answers are chosen, besides the vector."""
        signs = {name: objective.sign for name, objective in self.experiment.objectives.items()}
        calibrations = {name: asdict(calibration) for name, calibration in self.calibrations.items()}
        pool = sha256_json(self._pool_parts(best))
        return sha256_json({"pool": pool, "signs": signs, "calibrations": calibrations})

    # --- objectives that cannot score new text --------------------------------------------------------------------

    @cached_property
    def _agreement_columns(self) -> dict[str, Column]:
        if self.scored is None:
            return {}
        unscored = [name for name in self.experiment.objectives if name not in self.rewards]
        return {name: self.scored.rewards.get(name) or self.scored.pairs[name] for name in unscored}

    def _agreements(self, point: SweptPoint, model: PreTrainedModel | PeftModel) -> dict[str, list[float]]:
        if self.scored is None:
            return {}
        if point.folder is None:  # the reference prefers no answer to another; read twice, rounding would decide
            return {name: [0.5] * len(self.questions.prompts) for name in self._agreement_columns}
        data = self.scored.dataset()
        ratios = self._ratios(model, data, f"log-probs of {point.name}")
        return {name: agreement(ratios, self._pairs(name, data)) for name in self._agreement_columns}

    def _pairs(self, name: str, data: Any) -> Sequence[Sequence[Sequence[int]]]:
        """What is compared, by prompt: the objective's pairs; of one with numbers, every two answers that differ."""
        column, sign = REWARD_PREFIX + name, self.experiment.objectives[name].sign
        if column in data.column_names:
            return [ordered_pairs(scores, sign) for scores in data[column]]
        pairs: Sequence[Sequence[Sequence[int]]] = data[PAIRS_PREFIX + name][:]
        return pairs


def agreement(ratios: Sequence[Sequence[float]], pairs: Iterable[Sequence[Sequence[int]]]) -> list[float]:
    """Share of each prompt's pairs in which the policy prefers the chosen answer, (N,); 1/2 where it has none.

    The policy prefers the answer with the larger log pi / pi_ref; the reference prefers none: 1/2.

    Args:
        ratios: log pi - log pi_ref of each prompt's answers, nats. pairs: (chosen, rejected), by prompt.
    """
    shares = []
    for own, labels in zip(ratios, pairs, strict=True):
        wins = [_win(own[chosen] - own[rejected]) for chosen, rejected in labels]
        shares.append(float(np.mean(wins)) if wins else 0.5)
    return shares


def ordered_pairs(scores: Sequence[float | None], sign: float) -> list[tuple[int, int]]:
    """Every two answers whose numbers are there and differ, the better one first."""
    known = [(i, sign * score) for i, score in enumerate(scores) if score is not None]
    return [(a, b) for a, x in known for b, y in known if x > y]


def _win(difference: float) -> float:
    return 0.5 if abs(difference) <= ROUNDING else float(difference > 0)
