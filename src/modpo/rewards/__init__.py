"""What scores a response: one interface for functions, columns of the data, reward models and implicit rewards.

A reward is a number per (prompt, response) that never changes while training, so it is computed once and
cached under its `identity`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from modpo.data.prompt_group import Text, plain_text
from modpo.errors import MOST_PROBLEMS_SHOWN, InputError, NumericError, Problem
from modpo.experiment.sections import Experiment, ModelSection, RewardSection

PROBE_ROWS = 8
FINITE = "let the reward give every answer a finite number"
SOURCES = ("function", "column", "reward_model", "implicit", "sum", "train")


@dataclass(frozen=True)
class RewardBatch:
    """What a reward sees: lists of the same length B, one entry per response."""

    prompts: list[Text]
    responses: list[Text]
    columns: dict[str, list[float | None]]  # numbers of the response, by field
    fields: dict[str, list[Any]]  # what else the data says of the prompt
    where: list[str]  # "rows.jsonl:12", for error messages

    def __post_init__(self) -> None:
        lists: dict[str, list[Any]] = {"responses": self.responses, "where": self.where}
        for name, values in (lists | self.columns | self.fields).items():
            if len(values) != len(self.prompts):
                raise ValueError(f"{name} has {len(values)} entries, but prompts has {len(self.prompts)}")

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, start: int, stop: int) -> RewardBatch:
        """The entries from `start` up to, not including, `stop`."""
        return self.only(range(len(self))[start:stop])

    def only(self, indices: Sequence[int]) -> RewardBatch:
        """The entries at these indices, in this order."""
        return RewardBatch(
            [self.prompts[i] for i in indices],
            [self.responses[i] for i in indices],
            {name: [values[i] for i in indices] for name, values in self.columns.items()},
            {name: [values[i] for i in indices] for name, values in self.fields.items()},
            [self.where[i] for i in indices],
        )


class Reward(Protocol):
    """Scores a batch: one finite number per response, None where the data lacks one and the objective allows it."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that changes its numbers, as JSON; part of the cache key, so never a path."""

    @property
    def scores_new_text(self) -> bool:
        """False: it reads numbers of the data, and cannot score generated answers."""

    def __call__(self, batch: RewardBatch) -> Sequence[float | None]:
        """Raw scores, (B,)."""

    def release(self) -> None:
        """Forget the models that were read for scoring; the next call reads them again."""


@dataclass(frozen=True)
class RewardContext:
    """What an experiment says that rewards made of language models depend on."""

    model: ModelSection  # the reference policy
    cache_dir: Path
    max_length: int
    max_prompt_length: int | None = None
    packing: bool = True
    beta: float = 0.1

    @classmethod
    def of(cls, experiment: Experiment) -> RewardContext:
        """The context of an experiment."""
        data, training = experiment.data, experiment.training
        return cls(
            experiment.model,
            experiment.cache_dir,
            data.max_length,
            data.max_prompt_length,
            training.packing,
            training.beta,
        )


def load_reward(
    section: RewardSection, context: RewardContext, *, where: str, name: str, field: str | None = None
) -> Reward:
    """Build an objective's reward. Models are found and checked, and read when they are first needed.

    Args:
        section: exactly one source is set.
        where: "experiment.yaml:12", what an error names.
        name: the objective.
        field: where in the experiment the section stands; default: as the objective's reward.

    Raises:
        InputError: not exactly one source; a source that cannot be had or cannot score.
    """
    reward = _source(section, context, where, name, field or f"objectives.{name}.reward")
    if section.clip is not None:
        from modpo.rewards.combined import Clipped

        reward = Clipped(reward, *section.clip)
    return reward


def _source(section: RewardSection, context: RewardContext, where: str, name: str, field: str) -> Reward:
    # Imported one by one, and here, because these modules build on this one and some on language models.
    match [source for source in SOURCES if getattr(section, source) is not None]:
        case ["function"]:
            from modpo.rewards.function import FunctionReward

            return FunctionReward(section.function or "", section.kwargs, where=where, name=name, field=field)
        case ["column"]:
            from modpo.rewards.column import ColumnReward

            return ColumnReward(section.column or "", missing=section.missing)
        case ["reward_model"]:
            from modpo.rewards.classifier import ClassifierReward

            return ClassifierReward(section, context, where=where, name=name, field=field)
        case ["implicit"]:
            from modpo.rewards.implicit import ImplicitReward

            return ImplicitReward(section, context, where=where, name=name, field=field)
        case ["sum"]:
            from modpo.rewards.combined import WeightedSum

            parts = section.sum or []
            return WeightedSum(
                [(p.weight, load_reward(p, context, where=where, name=name, field=field)) for p in parts]
            )
        case ["train"]:
            problem, fix = "is not trained yet", "run `modpo reward` or `modpo sweep`"
        case _:
            problem, fix = "needs exactly one source", f"give one of {', '.join(SOURCES)}"
    raise InputError(Problem(where, field, problem, fix))


def probe(reward: Reward, batch: RewardBatch) -> Sequence[float | None]:
    """Score the first rows of a batch twice, before anything long is started.

    Returns:
        Their scores, at most `PROBE_ROWS`.

    Raises:
        InputError, NumericError: what the reward itself raises; InputError when a row's scores differ.

    Warns:
        UserWarning: every probed response has the same score.
    """
    few = batch.rows(0, PROBE_ROWS)
    first, second = reward(few), reward(few)
    problems = [
        Problem(
            place,
            "reward",
            f"not deterministic: it scored the same response {a!r}, then {b!r}",
            "remove or seed its randomness, so that a cached score can be trusted",
        )
        for place, a, b in zip(few.where, first, second, strict=True)
        if a != b
    ]
    if problems:
        raise InputError(problems)
    if len({plain_text(response) for response in few.responses}) > 1 and len(set(first)) == 1:
        said = f"{'none' if first[0] is None else format(first[0], 'g')} for each of the first {len(few)} responses"
        warnings.warn(f"{few.where[0]}: reward is {said}: a constant reward moves nothing", stacklevel=2)
    return first


def reads_model(section: RewardSection) -> bool:
    """Whether scoring reads a language model, which takes long."""
    named = (section.reward_model, section.implicit, section.train)
    return any(source is not None for source in named) or any(map(reads_model, section.sum or []))


def check_scores(values: Iterable[Any], batch: RewardBatch, *, field: str, fix: str = FINITE) -> list[float]:
    """Turn B values into B floats, or say which rows hold something else.

    Python and NumPy numbers and 0-d tensors are numbers; bool, None, text and arrays are not.

    Args:
        field, fix: what an error names, and what it advises.

    Raises:
        InputError: a value that is no number. NumericError: NaN or infinity.
    """
    plain = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    wrong = [i for i, value in enumerate(plain) if not _is_number(value)]
    if wrong:
        raise InputError([_value_problem(batch, i, plain[i], "is not a number", field, fix) for i in wrong])
    wrong = [i for i, value in enumerate(plain) if not _is_finite(value)]
    if wrong:
        shown = [_value_problem(batch, i, plain[i], "is not finite", field, fix) for i in wrong]
        raise NumericError("\n".join(str(problem) for problem in shown[:MOST_PROBLEMS_SHOWN]))
    return [float(value) for value in plain]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False


def _value_problem(batch: RewardBatch, row: int, value: Any, trouble: str, field: str, fix: str) -> Problem:
    said, response = repr(value), repr(plain_text(batch.responses[row])[:40])
    shown = said if len(said) <= 40 else said[:37] + "..."
    return Problem(batch.where[row], field, f"{shown} {trouble} (response {response})", fix)
