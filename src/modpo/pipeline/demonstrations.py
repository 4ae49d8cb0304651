"""What a reference policy is fine-tuned on: demonstrations as TRL knows them, or the answers that people preferred.

{"prompt": ..., "completion": ...}      both plain text, or both lists of messages
{"messages": [...]}                     a whole conversation that ends with the assistant
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from modpo.base.errors import InputError, Problem, Problems
from modpo.base.files import sha256_json
from modpo.base.progress import say
from modpo.data.groups import PromptGroups, group_rows
from modpo.data.preference_row import BlankTextError, read_preference_row
from modpo.data.prompt_group import Text
from modpo.data.row_fields import CHANGE_MEANING
from modpo.data.row_reader import LeftOut
from modpo.data.rows import Row, Rows
from modpo.data.sources import open_rows
from modpo.experiment.sections import SftSection

DEMONSTRATIONS = "demonstrations"  # the format of rows that are demonstrations already
LAYOUTS = "give `prompt` and `completion`, or `messages`"

Demonstration = dict[str, Text]  # {prompt, completion} or {messages}


@dataclass(frozen=True)
class Demonstrations:
    """What is learned and what is held out, in the file's order."""

    learned: list[Demonstration]
    held_out: list[Demonstration]

    @property
    def conversational(self) -> bool:
        """Whether the texts are lists of messages."""
        return not isinstance(_prompt(self.learned[0]), str)

    @property
    def fingerprint(self) -> str:
        """sha256 of the content."""
        return sha256_json([self.learned, self.held_out])


def load_demonstrations(
    section: SftSection, *, never: PromptGroups, seed: int, skip_empty: bool = False
) -> Demonstrations:
    """Read and split the demonstrations of an experiment.

    Args:
        never: prompts on which policies are measured; their demonstrations are left out.
        seed: which prompts are held out; all demonstrations of a prompt stand on one side.
        skip_empty: whether rows with a blank text are left out, and counted.

    Raises:
        InputError: bad rows, up to 20 at once; nothing to learn from; more held-out prompts than there are.
    """
    rows = open_rows(section.path, split=section.split, name=section.name, data_dir=section.data_dir)
    if section.format == DEMONSTRATIONS:
        found = read_demonstrations(rows, skip_empty=skip_empty)
    else:
        found = preferred_answers(group_rows(rows, format=section.format, skip_empty=skip_empty))
    measured = {json.dumps(group.prompt) for group in never}
    keyed = [(key, row) for row in found if (key := json.dumps(_prompt(row))) not in measured]
    prompts = {key for key, _ in keyed}
    if section.eval_prompts >= len(prompts):
        problem = f"{section.eval_prompts} held-out of {len(prompts)} demonstrated prompts leave none to learn from"
        fix = "lower `sft.eval_prompts`, or give demonstrations for more prompts than those that policies answer"
        raise InputError(Problem(section.path, "prompt", problem, fix))
    drawn = set(sorted(prompts, key=lambda prompt: sha256_json([seed, prompt]))[: section.eval_prompts])
    return Demonstrations([row for key, row in keyed if key not in drawn], [row for key, row in keyed if key in drawn])


def preferred_answers(groups: PromptGroups) -> list[Demonstration]:
    """The responses that are preferred in some pair and rejected in none, whatever the label set."""
    found: list[Demonstration] = []
    for group in groups:
        pairs = [pair for labels in group.pairs.values() for pair in labels]
        rejected = {loser for _, loser in pairs}
        chosen = dict.fromkeys(winner for winner, _ in pairs if winner not in rejected)
        found += [{"prompt": group.prompt, "completion": group.responses[i]} for i in chosen]
    return found


def read_demonstrations(rows: Rows, *, skip_empty: bool = False) -> list[Demonstration]:
    """Check every row. What it holds beyond its demonstration is left out; blank ones are too, and counted, if asked.

    Raises:
        InputError: up to 20 bad rows at once.
    """
    found: list[Demonstration] = []
    problems, blank = Problems(), 0
    for number in range(len(rows)):
        where = rows.where(number)
        with problems:
            try:
                found.append(_read(rows[number], where))
            except BlankTextError:
                if not skip_empty:
                    raise
                blank += 1
                continue
            _require_same_layout(found[0], found[-1], where)
    problems.raise_any()
    if blank:
        say(f"warning: {rows.name}: {blank} {LeftOut.BLANK}")
    if not found:
        raise InputError(Problem(rows.name, "", f"all {blank} rows are blank", "give at least one demonstration"))
    return found


def _read(row: Row, where: str) -> Demonstration:
    messages = row.get("messages")
    if messages is None:
        missing = [name for name in ("prompt", "completion") if row.get(name) is None]
        if missing:
            raise InputError([Problem(where, name, "missing field", LAYOUTS) for name in missing])
        prompt, completion = _checked(row, row["prompt"], row["completion"], where, {"responses[0]": "completion"})
        return {"prompt": prompt, "completion": completion}
    if not isinstance(messages, list) or len(messages) < 2:
        fix = "give a list of messages that ends with the assistant's"
        raise InputError(Problem(where, "messages", "holds no prompt and answer", fix))
    last = f"messages[{len(messages) - 1}]"
    names = {"responses[0][0]": last, "responses[0]": last, "prompt": "messages"}
    before, (answer, *_) = _checked(row, messages[:-1], messages[-1:], where, names)
    return {"messages": [*before, answer]}


def _checked(row: Row, prompt: Any, completion: Any, where: str, names: Mapping[str, str]) -> tuple[Any, Any]:
    """Prompt and completion, checked as a preference row with one response.

    Args:
        names: what fields of a preference row are called in this one, by their beginning.
    """
    try:
        beside = {name: row[name] for name in CHANGE_MEANING if name in row}
        checked = {**beside, "prompt": prompt, "responses": [completion]}
        read = read_preference_row(checked, where)
    except InputError as error:
        problems = list(error.problems)
        for i, problem in enumerate(problems):
            if known := next((name for name in names if problem.field.startswith(name)), None):
                problems[i] = replace(problem, field=names[known] + problem.field.removeprefix(known))
        raise type(error)(problems) from None
    return read.prompt, read.responses[0]


def _require_same_layout(first: Demonstration, row: Demonstration, where: str) -> None:
    """TRL reads all rows as it reads the first."""
    if row.keys() != first.keys() or isinstance(_prompt(row), str) != isinstance(_prompt(first), str):
        problem, fix = "is laid out otherwise than the rows before", "use one layout throughout the file"
        raise InputError(Problem(where, next(iter(row)), problem, fix))


def _prompt(row: Demonstration) -> Text:
    return row["prompt"] if "prompt" in row else row["messages"][:-1]
