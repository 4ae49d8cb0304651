"""Fits the calibrations that the objectives ask for: on answers of the reference policy, or on pairs of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from modpo.base.progress import working
from modpo.data.groups import PromptGroups
from modpo.data.tokens import tokenize_prompt
from modpo.experiment.sections import AUTO, Objective
from modpo.forward.packing_needs import Packing
from modpo.models.reference import Reference
from modpo.rewards.batch import Reward, RewardBatch, answer_batch
from modpo.scored.answers import SampleSettings, sample_column
from modpo.scored.calibration import UNCALIBRATED, Calibration, bradley_terry, fill_of, read_or_fit, standardise
from modpo.scored.columns import Column
from modpo.scored.data import Costs
from modpo.scored.lists import flat, lengths, pairs_of_rows, starts

CALIBRATED_ON = "answers to calibrate on"  # a stage


@dataclass(frozen=True)
class AnswerSettings:
    """How many, and how long: the same for every experiment, for what is fitted on them decides what is trained."""

    prompts: int = 64  # the first of the data; one answer to each
    max_new_tokens: int = 128


@dataclass(frozen=True)
class Calibrator:
    """Calibrates the rewards of scored data.

    Args:
        reference: the policy that answers.
        rewards: the scorer of each objective that has one.
        objectives: direction and calibration.
        answers: the answers of the reference policy on which rewards are standardised; None: the data's own responses.
        where: names a field's place in an error.
        packing: whether the reference reads packed rows as it answers.
    """

    reference: Reference
    rewards: Mapping[str, Reward]
    cache_dir: Path
    objectives: Mapping[str, Objective]
    answers: AnswerSettings | None
    where: Callable[[str], str]
    packing: Packing = AUTO

    @working("calibrations")
    def fit(
        self, groups: PromptGroups, rewards: Mapping[str, Column], pairs: Mapping[str, Column]
    ) -> tuple[dict[str, Calibration], Costs]:
        """What makes each reward's numbers comparable, fitted once and kept; and the cost of that."""
        fitted, all_costs = {}, Costs()
        for name, column_ in rewards.items():
            objective = self.objectives.get(name, Objective(name))
            fills = objective.reward is not None and objective.reward.missing == "mean"
            fill = fill_of(objective, _given(column_)) if fills else None
            if objective.calibration == "standardise":
                calibration, costs = self._standardise(groups, name, column_)
            elif objective.calibration == "bradley_terry":
                calibration, costs = self._fit_bradley_terry(objective, column_, pairs[name])
            else:
                calibration, costs = UNCALIBRATED, Costs()
            fitted[name] = replace(calibration, fill=fill)
            all_costs |= costs
        return fitted, all_costs

    def _standardise(self, groups: PromptGroups, name: str, own: Column) -> tuple[Calibration, Costs]:
        """On answers of the reference policy where the reward can score them, else on the data's responses."""
        reward, answers = self.rewards[name], None
        if self.answers is not None and reward.scores_new_text:
            groups = groups.select(range(min(self.answers.prompts, len(groups))))
            if (tokens := self._room(groups, self.answers.max_new_tokens)) > 0:
                one = SampleSettings(responses_per_prompt=1, max_new_tokens=tokens)
                answers = sample_column(self.reference, groups, one, cache_dir=self.cache_dir, packing=self.packing)

        def fit() -> Calibration:
            if answers is None:
                given, on = _given(own).tolist(), "responses of the data"
            else:
                scores, on = reward(_answer_batch(groups, answers)), "answers of the reference policy"
                given = [score for score in scores if score is not None]
            found = standardise(given, where=self.where(f"objectives.{name}"), objective=name)
            return replace(found, fitted_on=f"{len(given)} {on}")

        on = {"answers": answers.key} if answers else {"scores": own.content_hash()}
        identity = {"method": "standardise", "reward": reward.identity, **on}
        found, cost = read_or_fit(self.cache_dir, identity, fit)
        costs: Costs = {CALIBRATED_ON: answers.cost} if answers else {}
        return found, {**costs, f"calibration {name}": cost}

    def _room(self, groups: PromptGroups, tokens: int) -> int:
        """Most tokens of an answer: so many, or what the longest prompt leaves of the reference's positions."""
        positions, tokenizer = self.reference.positions, self.reference.tokenizer
        if positions is None:
            return tokens
        longest = max(len(tokenize_prompt(group.prompt, tokenizer, group.template_kwargs)) for group in groups)
        return min(tokens, positions - longest)

    def _fit_bradley_terry(self, objective: Objective, own: Column, pairs: Column) -> tuple[Calibration, Costs]:
        def fit() -> Calibration:
            sign = 1.0 if objective.maximize else -1.0
            differences = sign * _differences(own, pairs)
            where = self.where(f"objectives.{objective.name}")
            return bradley_terry(differences, where=where, objective=objective.name)

        identity = {
            "method": "bradley_terry",
            "scores": own.content_hash(),
            "pairs": pairs.content_hash(),
            "maximize": objective.maximize,
        }
        found, cost = read_or_fit(self.cache_dir, identity, fit)
        return found, {f"calibration {objective.name}": cost}


def _answer_batch(prompts: PromptGroups, answers: Column) -> RewardBatch:
    """One answer to each prompt, as a scorer sees them; an empty one is none."""
    rows = zip(prompts, answers.open()["responses"], strict=True)
    answered = [(group, text) for group, texts in rows for text in texts]
    return answer_batch([group for group, _ in answered], [text for _, text in answered])


def _given(scores: Column) -> np.ndarray:
    """A reward's numbers, of all responses that have one."""
    found: np.ndarray = flat(scores.table().column("scores")).drop_null().to_numpy()
    return found


def _differences(scores: Column, pairs: Column) -> np.ndarray:
    """Reward of chosen less that of rejected, of all pairs of which both have one."""
    lists = scores.table().column("scores")
    numbers, first = flat(lists).to_numpy(), starts(lengths(lists))  # a null is NaN, which no reward is
    places, row = pairs_of_rows(pairs.table().column("pairs"))
    chosen, rejected = (numbers[first[row] + side] for side in places.T)
    found: np.ndarray = (chosen - rejected)[~np.isnan(chosen) & ~np.isnan(rejected)]
    return found
