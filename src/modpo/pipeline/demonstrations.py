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
from modpo.data.preference_row import BlankTextError, PreferenceRow, read_preference_row
from modpo.data.prompt_group import Text
from modpo.data.row_fields import CHANGE_MEANING
from modpo.data.row_reader import LeftOut
from modpo.data.rows import Row, Rows
from modpo.data.sources import open_rows
from modpo.experiment.chat_settings import FIELD
from modpo.experiment.sections import SftSection

DEMONSTRATIONS = "demonstrations"  # the format of rows that are demonstrations already
LAYOUTS = "give `prompt` and `completion`, or `messages`"

Demonstration = dict[str, Any]  # {prompt, completion} or {messages}, and variables of the chat template


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
    section: SftSection,
    *,
    never: PromptGroups,
    seed: int,
    skip_empty: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Demonstrations:
    """Read and split the demonstrations of an experiment.

    Args:
        never: prompts on which policies are measured; their demonstrations are left out.
        seed: which prompts are held out; all demonstrations of a prompt stand on one side.
        skip_empty: whether rows with a blank text are left out, and counted.
        template_kwargs: variables of the chat template for all rows; a row's own go before them.

    Raises:
        InputError: bad rows, up to 20 at once; nothing to learn from; more held-out prompts than there are.
    """
    rows = open_rows(section.path, split=section.split, name=section.name, data_dir=section.data_dir)
    if section.format == DEMONSTRATIONS:
        found = read_demonstrations(rows, skip_empty=skip_empty)
    else:
        found = preferred_answers(group_rows(rows, format=section.format, skip_empty=skip_empty))
    found = _with_variables(found, template_kwargs or {})
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
        found += [{**group.prompt_row, "completion": group.responses[i]} for i in chosen]
    return found


def _with_variables(rows: list[Demonstration], everywhere: Mapping[str, Any]) -> list[Demonstration]:
    """Each conversation with all variables of the chat template that some row has, as TRL reads them from a table."""
    merged = [{**everywhere, **row.get(FIELD, {})} for row in rows]
    names = dict.fromkeys(name for given in merged for name in given)
    if not names or isinstance(_prompt(rows[0]), str):
        return rows
    return [{**row, FIELD: {name: given.get(name) for name in names}} for row, given in zip(rows, merged, strict=True)]


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
        read = _checked(row, row["prompt"], row["completion"], where, {"responses[0]": "completion"})
        return {"prompt": read.prompt, "completion": read.responses[0], **_variables(read)}
    if not isinstance(messages, list) or len(messages) < 2:
        fix = "give a list of messages that ends with the assistant's"
        raise InputError(Problem(where, "messages", "holds no prompt and answer", fix))
    last = f"messages[{len(messages) - 1}]"
    names = {"responses[0][0]": last, "responses[0]": last, "prompt": "messages"}
    read = _checked(row, messages[:-1], messages[-1:], where, names)
    return {"messages": [*read.prompt, *read.responses[0]], **_variables(read)}


def _variables(read: PreferenceRow) -> dict[str, Any]:
    return {FIELD: read.template_kwargs} if read.template_kwargs else {}


def _checked(row: Row, prompt: Any, completion: Any, where: str, names: Mapping[str, str]) -> PreferenceRow:
    """Prompt and completion, checked as a preference row with one response.

    Args:
        names: what fields of a preference row are called in this one, by their beginning.
    """
    try:
        beside = {name: row[name] for name in (*CHANGE_MEANING, FIELD) if name in row}
        return read_preference_row({**beside, "prompt": prompt, "responses": [completion]}, where)
    except InputError as error:
        problems = list(error.problems)
        for i, problem in enumerate(problems):
            if known := next((name for name in names if problem.field.startswith(name)), None):
                problems[i] = replace(problem, field=names[known] + problem.field.removeprefix(known))
        raise type(error)(problems) from None


def _require_same_layout(first: Demonstration, row: Demonstration, where: str) -> None:
    """TRL reads all rows as it reads the first."""
    if row.keys() - {FIELD} != first.keys() - {FIELD} or isinstance(_prompt(row), str) != isinstance(
        _prompt(first), str
    ):
        problem, fix = "is laid out otherwise than the rows before", "use one layout throughout the file"
        raise InputError(Problem(where, next(iter(row)), problem, fix))


def _prompt(row: Demonstration) -> Text:
    prompt: Text = row["prompt"] if "prompt" in row else row["messages"][:-1]
    return prompt
