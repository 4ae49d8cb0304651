"""Fields that change what a row means are used or refused; what a row begins with is a prompt or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import datasets
import pytest

from modpo.base.errors import InputError
from modpo.data.groups import PromptGroups, group_rows
from modpo.data.rows import rows_from_dataset, rows_from_list
from tests.data.pairs import PAIR, ROWS, Row, complaint

USER = {"role": "user", "content": "Name a colour."}
KIND = {"role": "system", "content": "Be kind."}
CHAT = {
    "prompt": [USER],
    "chosen": [{"role": "assistant", "content": "Blue."}],
    "rejected": [{"role": "assistant", "content": "Seven."}],
}
WHOLE = {side: [USER, *CHAT[side]] for side in ("chosen", "rejected")}


def grouped(*rows: Row, **options: Any) -> PromptGroups:
    return group_rows(rows_from_list(rows), **options)


# --- fields that change the meaning -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("row", [CHAT, WHOLE, {"prompt": [USER], "responses": [CHAT["chosen"]]}])
def test_a_system_column_is_the_first_turn(name: str, row: Row) -> None:
    (group,) = grouped({**row, name: "Be kind."})
    assert group.prompt == [KIND, USER]
    assert group.fields == {name: "Be kind."}  # reward functions read it as before


def test_rows_with_other_system_turns_are_other_prompts() -> None:
    groups = grouped({**CHAT, "system": "Be kind."}, {**CHAT, "system": None}, {**CHAT, "system": " "}, CHAT)
    assert [group.prompt for group in groups] == [[KIND, USER], [USER]]


def test_a_system_column_that_repeats_the_turn_adds_nothing() -> None:
    (group,) = grouped({**CHAT, "prompt": [KIND, USER], "system": "Be  kind."})
    assert group.prompt == [KIND, USER]
    (group,) = grouped({**PAIR, "prompt": "Be kind.\nName a colour.\n", "system": "Be kind."})
    assert group.prompt == "Be kind.\nName a colour.\n"


IMAGE = {"bytes": b"x", "path": None}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**PAIR, "system": "Be kind."}, "system: a plain-text prompt has no system turn"),
        ({**PAIR, "system_prompt": "Be kind."}, "system_prompt: a plain-text prompt has no system turn"),
        ({**CHAT, "system": ["Be kind."]}, "system: ['Be kind.'] is not text"),
        ({**CHAT, "system": "Be rude.", "prompt": [KIND, USER]}, "system: the conversation begins with another"),
        ({**CHAT, "system": "a", "system_prompt": "b"}, "system_prompt: another system turn stands in `system`"),
        ({**CHAT, "tools": [{"name": "f"}]}, "tools: tools are not supported"),
        ({**CHAT, "tools": '[{"name": "f"}]'}, "tools: tools are not supported"),
        ({**PAIR, "image": IMAGE}, "image: images, video and audio are not supported"),
        ({**PAIR, "images": [IMAGE]}, "images: images, video and audio are not supported"),
        ({**PAIR, "videos": ["a.mp4"]}, "videos: images, video and audio are not supported"),
        ({**PAIR, "audio": {"array": [0.1], "sampling_rate": 8}}, "audio: images, video and audio are not supported"),
        ({**PAIR, "rejected_images": ["a.png"]}, "rejected_images: images, video and audio are not supported"),
        ({**PAIR, "history": [["Hi", "Hello"]]}, "history: holds turns that `prompt` lacks"),
        ({**CHAT, "history": [{"role": "user", "content": "Hi"}]}, "history: holds turns that `prompt` lacks"),
    ],
)
def test_what_cannot_be_used_is_refused(row: Row, expected: str) -> None:
    with pytest.raises(InputError) as error:
        grouped(ROWS[0] if isinstance(row["prompt"], str) else CHAT, row)
    assert f"data set:row 1:{expected}" in complaint(error)
    assert "fix: " in complaint(error)


@pytest.mark.parametrize("nothing", [None, [], "", {}, [None], {"bytes": None, "path": None}])
@pytest.mark.parametrize("name", ["tools", "images", "image", "audio", "history", "system"])
def test_what_holds_nothing_passes(name: str, nothing: Any) -> None:
    assert grouped({**CHAT, name: nothing})[0].prompt == [USER]


def test_a_table_is_read_as_dicts_are() -> None:
    table = datasets.Dataset.from_list([{**CHAT, "system": "Be kind.", "images": [], "tools": None}, CHAT])
    assert [group.prompt for group in group_rows(rows_from_dataset(table))] == [[KIND, USER], [USER]]
    table = datasets.Dataset.from_list([{**PAIR, "images": ["a.png"]}])
    with pytest.raises(InputError, match="images, video and audio"):
        group_rows(rows_from_dataset(table))


def test_turns_that_the_prompt_repeats_pass() -> None:
    prompt = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, USER]
    assert grouped({**CHAT, "prompt": prompt, "history": [["Hi", "Hello"]]})[0].prompt == prompt


def test_what_has_no_effect_is_said() -> None:
    weighted = [{**PAIR, "margin": 0.5, "weight": 2.0}, {**ROWS[1], "margin": 1.0, "weight": 1.0}, ROWS[2]]
    assert grouped(*weighted).warnings == [
        "2 rows have a field `margin`, which has no effect",
        "1 rows have a field `weight`, which has no effect",
    ]
    assert grouped({**PAIR, "margin": 0, "weight": 1, "chosen_margin": 1.0, "rejected_margin": 0.0}).warnings == []


# --- content in parts ---------------------------------------------------------------------------------------


def test_what_a_prompt_lacks_or_repeats_is_said() -> None:
    rows = [{**PAIR, "prompt": f"Add {i} to it?", "input": f"The list {i}", "context": "Add"} for i in range(3)]
    assert grouped(*rows, {**PAIR, "input": ""}).warnings == [
        "3 rows have a field `input` whose text is not in their prompt: it is not trained on; "
        "fix: write it into the prompt where it belongs there"
    ]
    prompt = "What is two plus two?"
    twice = {"prompt": prompt, "chosen": f"{prompt} Four.", "rejected": f" {prompt} Five."}
    assert grouped(twice, {**twice, "rejected": "Five."}).warnings == [
        "1 rows have responses that begin with their prompt, which is trained on twice; fix: cut it off"
    ]


def test_a_pair_beside_responses_is_said() -> None:
    row = {"prompt": "Name a colour.", "responses": ["Blue.", "Seven."], "chosen": "Blue.", "rejected": None}
    assert grouped(row).warnings == ["1 rows have a field `chosen`, which has no effect"]
    assert grouped({**row, "pairs": [[0, 1]]}).warnings == []
    assert grouped({**PAIR}, format="prompts").warnings == []


@pytest.mark.parametrize("write", [json.dumps, str, lambda said: json.dumps(said, indent=1)[:-3]])
@pytest.mark.parametrize("row", [CHAT, WHOLE])
def test_messages_as_text_are_refused(row: Row, write: Callable[[Any], str]) -> None:
    with pytest.raises(
        InputError, match=r"is a list of messages, written as text; fix: read them by json\.loads"
    ) as raised:
        grouped({name: write(said) for name, said in row.items()})
    assert raised.value.problems[0].field == "prompt"
    assert len(grouped({**PAIR, "prompt": 'Explain [{"role": "user"}] to me.'})) == 1


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Name a "}, {"type": "text", "text": "colour.", "image": None}]
    (group,) = grouped({**CHAT, "prompt": [{"role": "user", "content": parts}]})
    assert group.prompt == [USER]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image", "url": "a.png"}, "prompt[0].content[1]: a part of type 'image' is no text"),
        ({"type": "text", "text": None}, "prompt[0].content[1]: {'type': 'text', 'text': None} is no text"),
        ("words", "prompt[0].content[1]: 'words' is no text"),
    ],
)
def test_other_parts_are_refused(part: Any, expected: str) -> None:
    with pytest.raises(InputError) as error:
        grouped({**CHAT, "prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, part]}]})
    assert expected in complaint(error)


# --- rows without a prompt ----------------------------------------------------------------------------------


def alike(beginning: str, count: int) -> list[Row]:
    return [
        {side: f"{beginning} {word}{i}." for side, word in (("chosen", "x"), ("rejected", "y"))} for i in range(count)
    ]


@pytest.mark.parametrize("beginning", ["The answer is", "Sure! Here is a list:\n\n", "<think>\nOkay, so", "Answer:"])
def test_a_beginning_that_all_answers_share_is_no_prompt(beginning: str) -> None:
    with pytest.raises(
        InputError, match=r"data set:row 0:prompt: missing, and what 5 rows with different answers"
    ) as e:
        grouped(*alike(beginning, 5), PAIR)
    assert "give the prompt in a field of its own, `prompt`" in complaint(e)
    assert len(grouped(*alike(beginning, 4))) == 1  # a few rows may have one prompt


@pytest.mark.parametrize(
    "beginning",
    [
        "\n\nHuman: Hi\n\nAssistant:",
        "Q: Name a colour. A:",
        "### Instruction:\nName one\n### Response:\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "[INST] Hi [/INST]",
        "Which colour do you like best?",
        "Write a long story about a dragon that lives near a lake and has no friends.\n",
    ],
)
@pytest.mark.parametrize("rows", [1, 20])
def test_dialogues_and_questions_are_prompts(beginning: str, rows: int) -> None:
    (group,) = grouped(*alike(beginning, rows))
    assert group.prompt == beginning.rstrip(" ")
    assert len(group.pairs["data"]) == rows


def test_answers_that_are_compared_with_each_other_answer_one_prompt() -> None:
    """Every two of five answers: ten rows, in which each answer stands four times."""
    answers = [f"Name a colour. {word}" for word in ("aa", "bb", "cc", "dd", "ee")]
    rows = [{"chosen": a, "rejected": b} for i, a in enumerate(answers) for b in answers[i + 1 :]]
    assert len(grouped(*rows)[0].pairs["data"]) == 10


@pytest.mark.parametrize("name", ["question", "query", "instruction", "input", "context"])
def test_a_question_beside_rows_without_a_prompt_is_refused(name: str) -> None:
    row = {"chosen": "The answer is 4.", "rejected": "The answer is 5.", name: "What is 2 + 2?"}
    with pytest.raises(InputError, match=f"row 0:{name}: there is no `prompt`.*call the field `prompt` instead"):
        grouped(row)
    assert grouped({**row, "prompt": "2 + 2 =\n"})[0].fields == {name: "What is 2 + 2?"}
    asked = {side: f"Human: What is 2 + 2?\n\nAssistant: {row[side]}" for side in ("chosen", "rejected")}
    assert len(grouped({**asked, name: "What is 2 + 2?"})) == 1
    assert grouped({**WHOLE, name: "asked otherwise"})[0].prompt == [USER]


def test_sharegpt_rows_are_told_their_format() -> None:
    row = {"conversations": [{"from": "human", "value": "Name a colour."}]}
    row |= {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")}
    with pytest.raises(InputError, match=r"conversations: .*; fix: read the rows as `format: sharegpt`"):
        grouped(row)
    assert len(grouped(row, format="sharegpt")) == 1


def test_alpaca_rows_are_told_what_to_rename() -> None:
    with pytest.raises(InputError, match="call the field `prompt` instead of `instruction`"):
        grouped({"instruction": "What is 2 + 2?", "input": "", "output": ["4", "5"]})


# --- blank texts --------------------------------------------------------------------------------------------


BLANK = [
    {**PAIR, "rejected": " \n"},
    {**PAIR, "chosen": None},
    {**PAIR, "prompt": ""},
    {"chosen": "Human: hi Assistant: a", "rejected": ""},
    {"prompt": "Q\n", "responses": ["a", ""], "pairs": [[0, 1]]},
]


@pytest.mark.parametrize("row", BLANK)
def test_blank_texts_are_left_out_and_counted_if_asked(row: Row) -> None:
    with pytest.raises(InputError, match="set `skip_empty: true`"):
        grouped(PAIR, row)
    groups = grouped(row, PAIR, row, skip_empty=True)
    assert groups.counts["rows"] == 1
    assert groups.warnings == ["2 rows left out: their prompt or a response is blank (`skip_empty`)"]


@pytest.mark.parametrize("side", ["chosen", "rejected", "prompt"])
def test_blank_conversations_are_left_out_too(side: str) -> None:
    blank = {**CHAT, side: [{**CHAT[side][0], "content": ""}]}
    with pytest.raises(InputError, match="set `skip_empty: true`"):
        grouped(blank)
    assert grouped(CHAT, blank, skip_empty=True).counts["rows"] == 1


def test_a_row_that_is_wrong_otherwise_is_no_blank_one() -> None:
    with pytest.raises(InputError, match="tools are not supported"):
        grouped(PAIR, {**PAIR, "chosen": "", "tools": [1]}, skip_empty=True)
    with pytest.raises(InputError, match="begin with nothing in common"):
        grouped({"chosen": "a", "rejected": "b"}, skip_empty=True)
    with pytest.raises(InputError, match="all 2 rows are left out"):
        grouped(*[{**PAIR, "chosen": ""}] * 2, skip_empty=True)
