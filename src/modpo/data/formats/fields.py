"""Reads the fields of a public data set's row, says everything that is wrong with them at once, and lays them out."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any, Self

from modpo.base.errors import InputError, Problem
from modpo.data.prompt_group import Message
from modpo.data.rows import Row

NOT_RATED = (None, "N/A")

_QA_FEEDBACK = "train_feedback.json or dev_feedback.json of github.com/allenai/FineGrainedRLHF; they are not on the Hub"

# Where the rows of each format lie: for documentation, and for what an error advises.
HUB: dict[str, str] = {
    "preference": "prompt, chosen and rejected, as in HuggingFaceH4/ultrafeedback_binarized (split train_prefs)",
    "prompts": "prompts alone, as in PKU-Alignment/BeaverTails-Evaluation (split test)",
    "sharegpt": "ShareGPT preference data, as in llamafactory/DPO-En-Zh-20k (name en)",
    "hh_rlhf": "Anthropic/hh-rlhf (data_dir harmless-base, helpful-base, helpful-online or helpful-rejection-sampled)",
    "pku_saferlhf": "PKU-Alignment/PKU-SafeRLHF (name alpaca-7b, alpaca2-7b or alpaca3-8b: one model's answers)",
    "beavertails": "PKU-Alignment/BeaverTails (split 30k_train or 330k_train)",
    "ultrafeedback": "openbmb/UltraFeedback",
    "helpsteer": "nvidia/HelpSteer or nvidia/HelpSteer2",
    "shp": "stanfordnlp/SHP (data_dir askculinary and so on: one subreddit)",
    "summarize_from_feedback": "openai/summarize_from_feedback (name comparisons, or axis with split validation)",
    "qa_feedback": _QA_FEEDBACK,
    "qa_feedback_spans": _QA_FEEDBACK,
}


class Fields:
    """The fields of one row, read inside a `with`; on leaving it, an InputError names all that are wrong.

        with Fields(row, "shp") as fields:
            prompt = fields.text("history")

    A wrong field reads as an empty value, so that the fields after it are looked at too: what was read is used
    after the `with`.

    Args:
        row: None stands for a row that has been reported already: its fields read as empty values.
        format: the name in `modpo.data.formats.FORMATS` that the row is read as.
    """

    def __init__(self, row: Row | None, format: str, *, path: str = "", problems: list[Problem] | None = None) -> None:
        self._row = row
        self._format = format
        self._path = path  # of a row inside a row: "completions[0]."
        self._problems: list[Problem] = [] if problems is None else problems

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._problems:
            raise InputError(self._problems)

    def report(self, name: str, problem: str) -> None:
        """Note what is wrong with a field, unless something is already."""
        place = f"{self._path}{name}"
        if self._row is not None and all(known.field != place for known in self._problems):
            fix = f"give rows of {HUB[self._format]}, or another `format` than {self._format}"
            self._problems.append(Problem("", place, problem, fix))

    def has(self, name: str) -> bool:
        """Whether something other than null stands there."""
        return self._row is not None and self._row.get(name) is not None

    def text(self, name: str, *, optional: bool = False) -> str:
        """A text; "" where an optional one is missing or null."""
        value = self._value(name, optional)
        if value is not None and not isinstance(value, str):
            self.report(name, f"{value!r:.60} is not text")
        return value if isinstance(value, str) else ""

    def number(self, name: str, *, optional: bool = False) -> float | None:
        """A number, also one written as text; None where it is null or "N/A", or an optional one is missing."""
        row = self._row or {}
        if name not in row and not optional:
            self.report(name, "missing field")
        value = row.get(name)
        if value in NOT_RATED:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            self.report(name, f"{value!r:.60} is not a number")
            return None
        return number

    def choice(self, name: str, options: Sequence[int]) -> int:
        """One of a few integers; true and false are 1 and 0."""
        value = self._value(name)
        if value is not None and value not in options:
            self.report(name, f"{value!r:.60} is not {' or '.join(map(str, options))}")
        return int(value) if value in options else options[0]

    def items(self, name: str) -> list[Any]:
        """A list of anything."""
        value = self._value(name)
        if value is not None and not isinstance(value, list):
            self.report(name, f"{value!r:.60} is not a list")
        return value if isinstance(value, list) else []

    def each(self, name: str) -> list[Fields]:
        """A list of objects."""
        return [self._inner(f"{name}[{i}]", item) for i, item in enumerate(self.items(name))]

    def inside(self, name: str, *, optional: bool = False) -> Fields:
        """An object; an optional one that is missing or null has no fields."""
        value = self._value(name, optional)
        return self._inner(name, {} if value is None and optional else value)

    def _inner(self, name: str, value: Any) -> Fields:
        if not isinstance(value, dict):
            self.report(name, f"{value!r:.60} is not an object")
        known = value if isinstance(value, dict) and self._row is not None else None
        return Fields(known, self._format, path=f"{self._path}{name}.", problems=self._problems)

    def _value(self, name: str, optional: bool = False) -> Any:
        """What stands there; None, where that is wrong, is reported."""
        value = (self._row or {}).get(name)
        if value is None and not optional:
            self.report(name, "is null" if name in (self._row or {}) else "missing field")
        return value


# --- questions and answers as conversations, so that a model's chat template applies to them ------------------


def message(role: str, text: str) -> Message:
    """One turn, without white space around it."""
    return {"role": role, "content": text.strip()}


def chat_row(
    prompt: str | list[Message], responses: Sequence[str], row: Row, used: Container[str], **extra: Any
) -> Row | None:
    """The row of a prompt, text or turns so far, and its responses; None if the prompt or a response is blank.

    Args:
        row, used: the given row, and its fields that are read already: the others are kept.
        extra: pairs and columns.
    """
    turns = [message("user", prompt)] if isinstance(prompt, str) else prompt
    answers = [message("assistant", response) for response in responses]
    if not all(turn["content"] for turn in [turns[-1], *answers]):
        return None
    return {"prompt": turns, "responses": [[answer] for answer in answers], **extra, **unused(row, used)}


def unused(row: Row, used: Container[str]) -> Row:
    """The fields of a row besides those that are read already."""
    return {name: value for name, value in row.items() if name not in used}
