"""What scores a response: one interface for functions, columns of the data, reward models and implicit rewards.

A reward is a number per (prompt, response) that never changes while training, so it is computed once and
cached under its `identity`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from modpo.base.errors import MOST_PROBLEMS_SHOWN, InputError, NumericError, Problem
from modpo.data.clock import TODAY, Clock
from modpo.data.preference_row import finite, is_number
from modpo.data.prompt_group import PromptGroup, Text, plain_text
from modpo.experiment.sections import AUTO, Experiment, ModelSection, resolved

FINITE = "let the reward give every answer a finite number"


@dataclass(frozen=True)
class RewardBatch:
    """What a reward sees: lists of the same length B, one entry per response."""

    prompts: list[Text]
    responses: list[Text]
    columns: dict[str, list[float | None]]  # numbers of the response, by field
    fields: dict[str, list[Any]]  # what else the data says of the prompt
    where: list[str]  # "rows.jsonl:12", for error messages
    template_kwargs: list[dict[str, Any]] = field(
        default_factory=list
    )  # of each prompt's chat template; none: no entry

    def __post_init__(self) -> None:
        if not self.template_kwargs:
            object.__setattr__(self, "template_kwargs", [{} for _ in self.prompts])
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
            [self.template_kwargs[i] for i in indices],
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
    """What rewards from language models depend on, of an experiment's settings."""

    model: ModelSection  # the reference policy
    cache_dir: Path
    max_length: int
    max_prompt_length: int | None = None
    packing: bool | str = AUTO  # as it is asked for: each model may need its own
    beta: float = 0.1
    clock: Clock = TODAY

    @classmethod
    def of(cls, experiment: Experiment) -> RewardContext:
        """The context of an experiment."""
        data, training = experiment.data, experiment.training
        return cls(
            experiment.model,
            experiment.cache_dir,
            data.max_length,
            data.max_prompt_length,
            resolved(experiment).asked.training.packing,
            training.beta,
            Clock(experiment.output_dir),
        )


def check_scores(values: Iterable[Any], batch: RewardBatch, *, field: str, fix: str = FINITE) -> list[float]:
    """Turn B values into B floats, or say which rows hold something else.

    Python and NumPy numbers and 0-d tensors are numbers; bool, None, text and arrays are not.

    Args:
        field, fix: what an error names, and what it advises.

    Raises:
        InputError: a value that is no number. NumericError: NaN or infinity.
    """
    plain = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    wrong = [i for i, value in enumerate(plain) if not is_number(value)]
    if wrong:
        raise InputError([_value_problem(batch, i, plain[i], "is not a number", field, fix) for i in wrong])
    wrong = [i for i, value in enumerate(plain) if finite(value) is None]
    if wrong:
        shown = [_value_problem(batch, i, plain[i], "is not finite", field, fix) for i in wrong]
        raise NumericError("\n".join(str(problem) for problem in shown[:MOST_PROBLEMS_SHOWN]))
    return [float(value) for value in plain]


def _value_problem(batch: RewardBatch, row: int, value: Any, trouble: str, field: str, fix: str) -> Problem:
    shown, response = repr(value), repr(plain_text(batch.responses[row])[:40])
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return Problem(batch.where[row], field, f"{shown} {trouble} (response {response})", fix)


def reward_batch(groups: Sequence[PromptGroup], indices: Sequence[int]) -> RewardBatch:
    """The responses of some groups, as a scorer sees them: one entry per response, None where a field is missing."""
    entries = [(group, r) for group in map(groups.__getitem__, indices) for r in range(len(group.responses))]
    columns = {name for group, _ in entries for name in group.columns}
    fields = {name for group, _ in entries for name in group.fields}
    return RewardBatch(
        prompts=[group.prompt for group, _ in entries],
        responses=[group.responses[r] for group, r in entries],
        columns={n: [group.columns[n][r] if n in group.columns else None for group, r in entries] for n in columns},
        fields={n: [group.fields.get(n) for group, _ in entries] for n in fields},
        where=[group.where for group, _ in entries],
        template_kwargs=[group.template_kwargs for group, _ in entries],
    )


def answer_batch(groups: Sequence[PromptGroup], texts: Sequence[str]) -> RewardBatch:
    """New answers, one to each group's prompt, with what the data says of the prompt."""
    names = {name for group in groups for name in group.fields}
    responses: list[Text] = [
        text if isinstance(group.prompt, str) else [{"role": "assistant", "content": text}]
        for group, text in zip(groups, texts, strict=True)
    ]
    return RewardBatch(
        prompts=[group.prompt for group in groups],
        responses=responses,
        columns={},
        fields={name: [group.fields.get(name) for group in groups] for name in names},
        where=[f"answer to {group.where}" for group in groups],
        template_kwargs=[group.template_kwargs for group in groups],
    )
