"""Demonstrations as TRL knows them; what is left out, and bad rows by file and row."""

from __future__ import annotations

from typing import Any

import pytest

from modpo.base.errors import InputError
from modpo.data.groups import group_rows
from modpo.data.rows import rows_from_list
from modpo.data.sources import open_rows
from modpo.experiment.sections import Experiment, SftSection
from modpo.pipeline.demonstrations import load_demonstrations, preferred_answers, read_demonstrations
from tests.pipeline.staged import ANSWER, USER


def demonstrations(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    return list(read_demonstrations(rows_from_list(rows, "rows.jsonl")))


def test_demonstrations_are_what_trl_knows() -> None:
    plain = {"prompt": "Hi? ", "completion": "Hello.", "source": "me"}
    assert demonstrations(plain) == [{"prompt": "Hi? ", "completion": "Hello."}]
    chat = {"prompt": [USER], "completion": [ANSWER]}
    assert demonstrations(chat) == [chat]
    assert demonstrations({"messages": [USER, ANSWER, USER, ANSWER]}) == [{"messages": [USER, ANSWER, USER, ANSWER]}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi? "}, "rows.jsonl:row 1:completion: missing field; fix: give `prompt` and `completion`"),
        ({"text": "Hi?"}, "rows.jsonl:row 1:prompt: missing field"),
        ({"prompt": "Hi? ", "completion": " "}, "rows.jsonl:row 1:completion: the response is empty"),
        ({"prompt": "Hi? ", "completion": 3}, "rows.jsonl:row 1:completion: 3 is neither text nor"),
        ({"prompt": "", "completion": "Hello"}, "rows.jsonl:row 1:prompt: is empty"),
        ({"prompt": [USER], "completion": "Hello"}, "rows.jsonl:row 1:completion: is plain text in one field"),
        ({"prompt": "a", "completion": "b", "tools": [1]}, "rows.jsonl:row 1:tools: tools are not supported"),
        ({"messages": [USER]}, "rows.jsonl:row 1:messages: holds no prompt and answer"),
        ({"messages": [USER, ANSWER, USER]}, "rows.jsonl:row 1:messages[2]: holds a message of role 'user'"),
        ({"messages": [{"role": "bot", "content": "?"}, ANSWER]}, "rows.jsonl:row 1:messages[0].role: unknown role"),
        ({"messages": [USER, {"role": "assistant"}]}, "rows.jsonl:row 1:messages[1]: {'role': 'assistant'} is no"),
        ({"messages": [USER, ANSWER]}, "rows.jsonl:row 1:messages: is laid out otherwise than the rows before"),
        ({"prompt": [USER], "completion": [ANSWER]}, "rows.jsonl:row 1:prompt: is laid out otherwise"),
    ],
)
def test_bad_demonstrations_name_file_and_row(row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        demonstrations({"prompt": "Hi? ", "completion": "Hello."}, row)
    assert str(caught.value).startswith(said)


def test_bad_rows_are_said_together_up_to_twenty() -> None:
    with pytest.raises(InputError) as caught:
        demonstrations(*[{"prompt": "Hi? "}] * 30)
    assert len(caught.value.problems) == 20


def test_preferred_answers_are_never_rejected() -> None:
    row = {"prompt": "p ", "responses": ["a", "b", "c", "d"], "pairs": {"x": [[0, 1], [2, 0]], "y": [[2, 3], [3, 1]]}}
    groups = group_rows(rows_from_list([row]))
    assert preferred_answers(groups) == [{"prompt": "p ", "completion": "c"}]


def test_what_policies_are_measured_on_is_not_learned(experiment: Experiment) -> None:
    rows = group_rows(open_rows(experiment.data.path))
    section = SftSection(experiment.data.path, format="preference", eval_prompts=3)
    found = load_demonstrations(section, never=rows[:5], seed=0)
    prompts = [{row["prompt"] for row in side} for side in (found.learned, found.held_out)]
    assert [len(side) for side in prompts] == [4, 3]  # of nine prompts two have no answer that nobody rejects
    assert not prompts[0] & prompts[1]
    assert not (prompts[0] | prompts[1]) & {group.prompt for group in rows[:5]}


def test_nothing_left_to_learn_is_said(experiment: Experiment) -> None:
    rows = group_rows(open_rows(experiment.data.path))
    with pytest.raises(InputError, match="0 held-out of 0 demonstrated prompts leave none to learn from"):
        load_demonstrations(SftSection(experiment.data.path, format="preference"), never=rows, seed=0)
