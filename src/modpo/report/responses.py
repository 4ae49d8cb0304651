"""`responses.jsonl`: what every policy answered, one answer a line, grouped by prompt for the report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from modpo.base.decode import WrongFieldError, decode
from modpo.base.errors import InputError, Problem
from modpo.data.prompt_group import Text
from modpo.front.schema import Front, FrontObjective

FILE = "responses.jsonl"
PROMPTS_SHOWN = 8  # unless evaluation.report_prompts says otherwise


@dataclass(frozen=True)
class Response:
    """One line of the file."""

    policy: str
    prompt: Any  # plain text, or messages
    response: str
    rewards: dict[str, float | None] = field(default_factory=dict)  # raw, by objective
    kl: float | None = None  # log pi(y|x) - log pi_ref(y|x) of this answer, nats
    tokens: int | None = None


@dataclass(frozen=True)
class PromptAnswers:
    """A prompt with the first answer of each policy."""

    prompt: Text
    answers: dict[str, Response]  # by policy


@dataclass(frozen=True)
class Responses:
    """The first prompts of the file, in its order: nothing is picked."""

    shown: list[PromptAnswers]
    prompts: int  # in the whole file
    strangers: dict[str, int]  # answers of policies that the front does not know


def read_responses(front: Front) -> Responses | None:
    """Read the file beside the front; None if there is none.

    Raises:
        InputError: lines that are no answers, the first ones named.
    """
    path = front.folder / FILE
    if not path.is_file():
        return None
    known = {front.reference.name} | {point.name for point in front.points}
    limit = front.evaluation.get("report_prompts")
    limit = limit if isinstance(limit, int) else PROMPTS_SHOWN
    by_prompt: dict[str, PromptAnswers | None] = {}  # None: counted, not shown
    strangers: dict[str, int] = {}
    problems: list[Problem] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                answer = _read_line(line)
            except WrongFieldError as wrong:
                fix = "measure it again"
                problems.append(Problem(f"{path}:{number}", wrong.field, wrong.problem, fix))
                continue
            if answer.policy not in known:
                strangers[answer.policy] = strangers.get(answer.policy, 0) + 1
                continue
            key = json.dumps(answer.prompt, sort_keys=True)
            if key not in by_prompt:
                by_prompt[key] = PromptAnswers(answer.prompt, {}) if len(by_prompt) < limit else None
            if group := by_prompt[key]:
                group.answers.setdefault(answer.policy, answer)
    if problems:
        raise InputError(problems)
    return Responses([group for group in by_prompt.values() if group], len(by_prompt), strangers)


def _read_line(line: bytes) -> Response:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:  # malformed JSON, not UTF-8, or nested without end
        raise WrongFieldError("", f"not JSON: {error}") from None
    response: Response = decode(Response, content)
    messages = [] if isinstance(response.prompt, str) else response.prompt
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise WrongFieldError("prompt", "expected text, or messages of `role` and `content`")
    return response


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def verdict(objective: FrontObjective, reward: float | None, reference: float | None) -> str:
    """How a reward compares with that of the reference's answer; "" where it does not."""
    if reward is None or reference is None or reward == reference:
        return ""
    return "better" if (reward > reference) == objective.maximize else "worse"
