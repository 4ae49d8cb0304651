"""What one row says: its prompt, its responses, its pairs, and a number for each response.

A row is laid out as TRL knows preference data, every text plain or conversational:

    {"prompt": ..., "chosen": ..., "rejected": ...}
    {"chosen": ..., "rejected": ...}                       the prompt is what both begin with
    {"prompt": ..., "responses": [...], "pairs": [[chosen, rejected], ...]}       pairs may be missing
    {"prompt": ..., "responses": [...], "pairs": {"better": [[0, 1]], "safer": [[1, 0]]}}      two label sets

Beside them, `system` is the first turn of a conversation, and what no text can hold (tools, images) is refused.
A pair row gives numbers as `chosen_NAME` and `rejected_NAME` (or `NAME_chosen`, `NAME_rejected`), a row of
responses as a list `NAME` as long as the responses.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from modpo.base.errors import InputError, Problem
from modpo.data.content_parts import PartError, with_joined_parts
from modpo.data.prompt_group import UNNAMED, Message, Pair, Text, plain_text
from modpo.data.row_fields import (
    field_troubles,
    fields_without_effect,
    prompt_notes,
    question_troubles,
    with_system_turn,
)
from modpo.data.rows import Row
from modpo.experiment.chat_settings import FIELD as TEMPLATE_KWARGS
from modpo.experiment.chat_settings import reserved

ROLES = ("system", "developer", "user", "assistant", "tool")
LAYOUTS = "give prompt, chosen and rejected; or chosen and rejected; or prompt and responses"
WRITE_TEXT = "write text, or a list of {role, content} messages"
WRITE_OR_SKIP = "write text, remove the row, or set `skip_empty: true` in `data` (of MODPOConfig: skip_empty=True)"

_HALF_OF_A_PAIR = re.compile(r"[\ud800-\udfff]")  # a surrogate that stands alone, as JSON's escapes can write it

_MESSAGES_AS_TEXT = re.compile(r"""\s*\[?\s*\{\s*(["'])(role|content|from|value)\1\s*:\s*["']""")


@dataclass(frozen=True)
class PreferenceRow:
    """One checked row. Responses are as the row gives them: the same text may stand there twice."""

    prompt: Text
    responses: list[Text]
    pairs: dict[str, list[Pair]]  # by label set; none: they are drawn later, or only scored
    columns: dict[str, list[float | None]]  # one number per response
    fields: dict[str, Any]  # everything else
    split: bool = False  # whether the prompt is what both texts begin with
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # variables of the chat template

    @property
    def notes(self) -> list[str]:
        """What a user should know of the row; "rows" stands before the verb, for they are counted."""
        found = fields_without_effect(self.fields)
        if self.responses and not self.pairs:  # in the other layout they are no fields
            found += [name for name in ("chosen", "rejected") if self.fields.get(name) is not None]
        notes = [f"rows have a field `{name}`, which has no effect" for name in found]
        return notes + ([] if self.split else prompt_notes(self.prompt, self.responses, self.fields))

    @property
    def conversational(self) -> bool:
        return not isinstance(self.prompt, str)


def read_preference_row(row: Row, where: str, columns: Sequence[str] = ()) -> PreferenceRow:
    """Check one row.

    Args:
        row: laid out as above.
        where: what an error names.
        columns: the numbers that every response must have.

    Raises:
        BlankTextError: a blank prompt or response, and nothing else is wrong.
        InputError: everything that is wrong with the row.
    """
    try:
        template_kwargs = _template_kwargs(row)
        row = with_joined_parts({name: value for name, value in row.items() if name != TEMPLATE_KWARGS})
        read = _read_responses(row) if _has_responses(row) else _read_pair(row)
        read = replace(read, template_kwargs=template_kwargs) if template_kwargs else read
    except (_BadFieldError, PartError) as error:
        misnamed = () if "prompt" in row else question_troubles("", row)
        raise _error(where, [error.args, *misnamed]) from None
    troubles = [*_text_troubles(read, row), *field_troubles(read.prompt, row), *_column_troubles(read, columns)]
    if troubles:
        raise _error(where, troubles)
    found = {name: [finite(v) for v in values] for name, values in read.columns.items()}
    return replace(read, prompt=with_system_turn(read.prompt, row), columns=found)


class BlankTextError(InputError):
    """A row whose prompt or response is blank, and that is right otherwise."""


def _error(where: str, troubles: Sequence[Sequence[str]]) -> InputError:
    kind = BlankTextError if all(fix == WRITE_OR_SKIP for _, _, fix in troubles) else InputError
    return kind([Problem(where, *trouble) for trouble in troubles])


class _BadFieldError(Exception):
    """Arguments: field, problem, fix."""


# --- the two layouts --------------------------------------------------------------------------------------


def _has_responses(row: Row) -> bool:
    return row.get("responses") is not None  # a table with both layouts has nulls in the other's columns


def _read_responses(row: Row) -> PreferenceRow:
    prompt, responses, pairs = _text(row, "prompt"), row["responses"], row.get("pairs")
    if not isinstance(responses, list):
        raise _BadFieldError("responses", "is not a list of responses", "give a list")
    texts = [_text({f"responses[{i}]": text}, f"responses[{i}]") for i, text in enumerate(responses)]
    rest = {name: value for name, value in row.items() if name not in ("prompt", "responses", "pairs")}
    found = {
        name: list(value)
        for name, value in rest.items()
        if isinstance(value, list) and len(value) == len(responses) and any(is_number(v) for v in value)
    }
    fields = {name: value for name, value in rest.items() if name not in found}
    return PreferenceRow(prompt, texts, _label_sets(pairs, len(responses)), found, fields)


def _label_sets(given: Any, count: int) -> dict[str, list[Pair]]:
    """`pairs` as it stands: a list of one nameless label set, or a mapping of several."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        return {UNNAMED: _pairs(given, count, "pairs")}
    # A table has the same keys in every row: a label set that a row lacks is null there.
    return {str(name): _pairs(pairs, count, f"pairs.{name}") for name, pairs in given.items() if pairs is not None}


def _pairs(given: Any, count: int, field: str) -> list[Pair]:
    fix = f"give pairs [chosen, rejected] of two different indices from 0 to {count - 1}"
    if not isinstance(given, list):
        raise _BadFieldError(field, f"{given!r:.60} is not a list", fix)
    for i, pair in enumerate(given):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(index) is int for index in pair):
            raise _BadFieldError(f"{field}[{i}]", f"{pair!r:.60} is not two integers", fix)
        if not all(0 <= index < count for index in pair):
            raise _BadFieldError(f"{field}[{i}]", f"{list(pair)} is out of range for {count} responses", fix)
        if pair[0] == pair[1]:
            raise _BadFieldError(f"{field}[{i}]", f"{list(pair)} names one response twice", fix)
    return [(pair[0], pair[1]) for pair in given]


def _read_pair(row: Row) -> PreferenceRow:
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise _BadFieldError("rejected", "one of chosen and rejected is text, the other a conversation", WRITE_TEXT)
    # Beside whole conversations, a plain prompt may repeat one of their messages, as in UltraFeedback.
    repeated = not isinstance(chosen, str) and any(m["content"] == row.get("prompt") for m in chosen[:-1])
    split = "prompt" not in row or repeated
    if split:
        prompt, chosen, rejected = _split_common(chosen, rejected)
    else:
        prompt = _text(row, "prompt")
    rest = {name: value for name, value in row.items() if name not in ("prompt", "chosen", "rejected")}
    found = dict(_sided_columns(rest))
    used = {side for name in found for side in _sides(name, rest)}
    fields = {name: value for name, value in rest.items() if name not in used}
    return PreferenceRow(prompt, [chosen, rejected], {UNNAMED: [(0, 1)]}, found, fields, split)


def _split_common(chosen: Any, rejected: Any) -> tuple[Text, Text, Text]:
    """What two texts or conversations begin with in common, and their rests, of which neither is empty."""
    most = min(len(chosen), len(rejected)) - 1
    common = next((i for i in range(most) if chosen[i] != rejected[i]), max(most, 0))
    if isinstance(chosen, str) and common and chosen[common - 1] == " ":
        common -= 1  # the space before a word belongs to the word's token
    return chosen[:common], chosen[common:], rejected[common:]


def _sided_columns(rest: Row) -> Iterator[tuple[str, list[Any]]]:
    for name in rest:
        base = name.removeprefix("chosen_") if name.startswith("chosen_") else name.removesuffix("_chosen")
        if base in ("", name):
            continue
        values = [rest[side] for side in _sides(base, rest)]
        if len(values) == 2 and any(is_number(value) for value in values):
            yield base, values


def _sides(name: str, rest: Row) -> list[str]:
    """The two fields that hold a column, if both are there."""
    for sides in ((f"chosen_{name}", f"rejected_{name}"), (f"{name}_chosen", f"{name}_rejected")):
        if all(side in rest for side in sides):
            return list(sides)
    return []


# --- texts ------------------------------------------------------------------------------------------------


def _text(row: Row, field: str) -> Text:
    """A field that is text or a list of messages; of messages, the role and the content."""
    if field not in row:
        raise _BadFieldError(field, "missing field", LAYOUTS)
    value = row[field]
    if value is None:
        raise _BadFieldError(field, "is null", WRITE_OR_SKIP)
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise _BadFieldError(field, f"{value!r:.60} is neither text nor a list of messages", WRITE_TEXT)
    return [_message(message, f"{field}[{i}]") for i, message in enumerate(value)]


def _message(given: Any, field: str) -> Message:
    """A message with all keys that say something: a chat template may read them. A table fills the others with null."""
    if isinstance(given, dict) and given.get("tool_calls"):
        raise _BadFieldError(f"{field}.tool_calls", "tool calls are not supported", "write them into the content")
    if not isinstance(given, dict) or "role" not in given or "content" not in given:
        raise _BadFieldError(field, f"{given!r:.60} is no message", WRITE_TEXT)
    if given["role"] not in ROLES:
        raise _BadFieldError(f"{field}.role", f"unknown role {given['role']!r}", f"use one of: {', '.join(ROLES)}")
    if not isinstance(given["content"], str):
        raise _BadFieldError(f"{field}.content", f"{given['content']!r:.60} is not text", "write text")
    said = {key: value for key, value in given.items() if value is not None and key != "tool_calls"}
    return _as_json(said, field)


def _template_kwargs(row: Row) -> dict[str, Any]:
    """The row's variables of the chat template, as TRL reads them. A table fills those that a row lacks with null."""
    given = row.get(TEMPLATE_KWARGS)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise _BadFieldError(TEMPLATE_KWARGS, f"{given!r:.60} is no mapping", "give {name: value}, or remove the field")
    for problem, fix in reserved(given):
        raise _BadFieldError(TEMPLATE_KWARGS, problem, fix)
    return _as_json({name: value for name, value in given.items() if value is not None}, TEMPLATE_KWARGS)


def _as_json(values: dict[str, Any], field: str) -> dict[str, Any]:
    """The values, if all are such as JSON has: a table may hold others, which no template knows."""
    for name, value in values.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            fix = "give text, numbers, true, false, lists and mappings"
            raise _BadFieldError(f"{field}.{name}", f"{value!r:.60} is no value of JSON", fix) from None
    return values


def _text_troubles(read: PreferenceRow, row: Row) -> Iterator[tuple[str, str, str]]:
    """Everything that is wrong with the texts of a row whose layout is right."""
    names = [f"responses[{i}]" for i in range(len(read.responses))] if _has_responses(row) else ["chosen", "rejected"]
    yield from _prompt_troubles(read, row)
    if read.template_kwargs and not read.conversational:
        yield TEMPLATE_KWARGS, "has no effect on plain text", "remove the field, or give lists of messages"
    for name, text in [("prompt", read.prompt), *zip(names, read.responses, strict=True)]:
        words = text if isinstance(text, str) else "".join(str(value) for message in text for value in message.values())
        if isinstance(text, str) is read.conversational:
            yield name, "is plain text in one field and a conversation in another", "use one layout for all fields"
        if isinstance(text, str) and _MESSAGES_AS_TEXT.match(text):
            yield (
                name,
                f"{text!r:.60} is a list of messages, written as text",
                "read them by json.loads, and give the list",
            )
        if not words.isascii() and _HALF_OF_A_PAIR.search(words):
            yield name, "holds half of a surrogate pair, which is no character", "repair the text's encoding"
        if name != "prompt":
            yield from _response_troubles(name, text)


def _prompt_troubles(read: PreferenceRow, row: Row) -> Iterator[tuple[str, str, str]]:
    if not read.split:
        if _is_blank(read.prompt):
            yield "prompt", "is empty", WRITE_OR_SKIP
        return
    yield from question_troubles(read.prompt, row)
    if _is_blank(read.prompt) and not any(_is_blank(response) for response in read.responses):
        yield "prompt", "chosen and rejected begin with nothing in common", "give the prompt in a field of its own"


def _is_blank(text: Text) -> bool:
    return not plain_text(text).strip()


def _response_troubles(name: str, text: Text) -> Iterator[tuple[str, str, str]]:
    if isinstance(text, str):
        blank = not text.strip()
    else:
        roles = [message["role"] for message in text if message["role"] != "assistant"]
        blank = any(not message["content"].strip() for message in text)
        if roles:
            yield (
                name,
                f"holds a message of role {roles[0]!r}",
                "give answers to one prompt: a response has assistant messages only",
            )
    if blank:
        yield name, "the response is empty or only white space", WRITE_OR_SKIP


# --- numbers ----------------------------------------------------------------------------------------------


def _column_troubles(read: PreferenceRow, columns: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Which of the columns that every response must have are missing or unfit."""
    for name in columns:
        if name not in read.columns:
            given = read.fields.get(name, read.fields.get(f"chosen_{name}", read.fields.get(f"{name}_chosen")))
            problem = "missing column" if given is None else f"{given!r:.60} gives no number for each response"
            fix = f"give chosen_{name} and rejected_{name}, or beside `responses` a list {name} of as many numbers"
            yield name, problem, fix
        elif unfit := [value for value in read.columns[name] if finite(value) is None]:
            yield name, f"{unfit[0]!r:.60} is not a finite number", "give a finite number for each response"


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float; true and false are neither."""
    return type(value) is float or (isinstance(value, int | float) and not isinstance(value, bool))


def finite(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    if type(value) is float:  # nearly always, and far quicker
        return value if math.isfinite(value) else None
    try:
        return float(value) if is_number(value) and math.isfinite(value) else None
    except OverflowError:  # an integer too large for a float
        return None
