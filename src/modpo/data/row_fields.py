"""Fields beside a row's texts that change what the texts mean: each is used or refused, never passed by.

Every other field is passed on: reward functions read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from modpo.data.prompt_group import Text, plain_text
from modpo.data.rows import Row

SYSTEM = ("system", "system_prompt", "system_message", "system_instruction")
TURNS_BEFORE = ("history",)
TOOLS = ("tools", "functions")
MEDIA = (
    *("image", "images", "image_path", "image_paths", "image_url", "image_urls", "img", "pixel_values"),
    *("chosen_image", "chosen_images", "rejected_image", "rejected_images"),
    *("video", "videos", "audio", "audios"),
)
QUESTIONS = (
    *("question", "query", "instruction", "input", "inputs", "problem", "user", "user_prompt", "user_input"),
    *("context", "conversation", "conversations", "dialogue", "dialog", "post", "document", "article"),
)
WITHOUT_EFFECT = {  # what loss or reference would have to read, and the value at which that changes nothing
    "margin": 0.0,
    "weight": 1.0,
    "sample_weight": 1.0,
    "loss_weight": 1.0,
    "ref_chosen_logps": None,
    "ref_rejected_logps": None,
}

CHANGE_MEANING = (*SYSTEM, *TURNS_BEFORE, *TOOLS, *MEDIA)
_CHANGE_MEANING, _QUESTIONS, _WITHOUT_EFFECT = map(frozenset, (CHANGE_MEANING, QUESTIONS, WITHOUT_EFFECT))

Trouble = tuple[str, str, str]  # field, problem, fix


def field_troubles(prompt: Text, row: Row) -> Iterator[Trouble]:
    """What is wrong with the fields that change the meaning of a row whose prompt is known."""
    if _CHANGE_MEANING.isdisjoint(row):  # nearly always
        return
    for name in (*TOOLS, *MEDIA):
        if not _is_empty(row.get(name)):
            what = "tools" if name in TOOLS else "images, video and audio"
            yield name, f"{what} are not supported", "remove the field, or write what it says into the prompt"
    for name in TURNS_BEFORE:
        if not all(_stands_in(prompt, text) for text in _texts(row.get(name))):
            fix = "write the turns before the last one into `prompt`, as a list of messages, and remove the field"
            yield name, "holds turns that `prompt` lacks", fix
    yield from _system_troubles(prompt, row)


def question_troubles(prompt: Text, row: Row) -> Iterator[Trouble]:
    """Fields that ask something, where the prompt is what two plain texts begin with and does not hold it.

    What conversations begin with is a prompt beyond doubt: it has its roles.
    """
    for name in QUESTIONS if isinstance(prompt, str) else ():
        if not all(_stands_in(prompt, text) for text in _texts(row.get(name))):
            problem = "there is no `prompt`, and this would not be trained on otherwise"
            fix = f"call the field `prompt` instead of `{name}`, or remove it if it is no part of the prompt"
            speakers = name == "conversations" and "'from':" in str(row[name])
            yield name, problem, "read the rows as `format: sharegpt`" if speakers else fix


def prompt_notes(prompt: Text, responses: Sequence[Text], fields: Row) -> list[str]:
    """What a prompt that the row gives seems to lack, or to have twice. Reward functions may mean it so: it passes."""
    notes = [
        f"rows have a field `{name}` whose text is not in their prompt: it is not trained on; "
        "fix: write it into the prompt where it belongs there"
        for name in (() if _QUESTIONS.isdisjoint(fields) else QUESTIONS)
        if not all(_stands_in(prompt, text) for text in _texts(fields.get(name)))
    ]
    if isinstance(prompt, str) and responses:
        opening = prompt.strip()
        repeated = all(isinstance(response, str) and response.lstrip().startswith(opening) for response in responses)
        if repeated and len(prompt.split()) > 2:
            notes.append("rows have responses that begin with their prompt, which is trained on twice; fix: cut it off")
    return notes


def with_system_turn(prompt: Text, row: Row) -> Text:
    """A conversation behind the row's system turn, unless it has one; the troubles are none."""
    given = _system_texts(row)
    if not given or isinstance(prompt, str) or _begins_with_system(prompt):
        return prompt
    return [{"role": "system", "content": given[0][1]}, *prompt]


def fields_without_effect(row: Row) -> list[str]:
    """The fields of a row that other trainers read in the loss, and none does here."""
    if _WITHOUT_EFFECT.isdisjoint(row):
        return []
    return [name for name, neutral in WITHOUT_EFFECT.items() if row.get(name) not in (None, neutral)]


def _system_troubles(prompt: Text, row: Row) -> Iterator[Trouble]:
    given = _system_texts(row)
    for name, text in given:
        if not isinstance(text, str):
            yield name, f"{text!r:.60} is not text", "give the system turn as text"
        elif text != given[0][1]:
            yield name, f"another system turn stands in `{given[0][0]}`", "keep one of them"
        elif isinstance(prompt, str) and not _stands_in(prompt, text):
            fix = "give prompt and responses as lists of messages, or write it into the prompt and remove the field"
            yield name, "a plain-text prompt has no system turn", fix
        elif _begins_with_system(prompt) and not _stands_in(prompt[:1], text):
            yield name, "the conversation begins with another system turn", "keep one of them"


def _begins_with_system(prompt: Text) -> bool:
    return not isinstance(prompt, str) and bool(prompt) and prompt[0]["role"] in ("system", "developer")


def _system_texts(row: Row) -> list[tuple[str, Any]]:
    return [(name, row[name]) for name in SYSTEM if name in row and not _is_empty(row[name])]


def _stands_in(prompt: Text, text: str) -> bool:
    """Whether a prompt holds a text; white space may differ."""
    return " ".join(text.split()) in " ".join(plain_text(prompt).split())


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, however deep, but for what says who speaks."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in ("role", "from"):
                yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _is_empty(value: Any) -> bool:
    """Whether nothing stands there, as a table shows it: null, an empty text or list, a record of nulls."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null", "None")
    if isinstance(value, dict):
        return all(_is_empty(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return all(inner is None for inner in value)
    return value is None
