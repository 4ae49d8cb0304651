"""Rows from every source, and rows into prompt groups. The oracle of grouping is a plain loop over the rows."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modpo.base.errors import InputError, IntegrityError
from modpo.data.groups import PromptGroups, group_rows, overlap
from modpo.data.rows import rows_from_list
from modpo.data.sources import open_rows
from tests.data.pairs import PAIR, ROWS, Row, complaint
from tests.kit import write_rows

USER = {"role": "user", "content": "Name a colour."}
BLUE = {"role": "assistant", "content": "Blue."}
SEVEN = {"role": "assistant", "content": "Seven."}
CHAT = {"prompt": [USER], "chosen": [BLUE], "rejected": [SEVEN]}


def grouped(*rows: Row, **options: Any) -> PromptGroups:
    return group_rows(rows_from_list(rows), **options)


# --- layouts ------------------------------------------------------------------------------------------------


def test_pair_rows_with_one_prompt_are_one_group() -> None:
    groups = grouped(*ROWS)
    assert [group.prompt for group in groups] == ["Name a colour.\n", "Name a fruit.\n"]
    colour = groups[0]
    assert colour.responses == ("Blue.", "Seven.", "Red.")
    assert colour.pairs == {"data": ((0, 1), (2, 1))}
    assert colour.where == "data set:row 0"
    assert groups.counts == {
        "groups": 2,
        "rows": 3,
        "responses": 5,
        "pairs": 3,
        "identical_pairs": 0,
        "duplicate_rows": 0,
    }
    assert not groups.conversational
    assert groups.warnings == []


def test_conversations() -> None:
    table_row = {**CHAT, "prompt": [{**USER, "name": None, "tool_calls": None}], "messages": "kept"}
    (group,) = grouped(table_row)
    assert (group.prompt, group.responses, group.pairs) == ([USER], ([BLUE], [SEVEN]), {"data": ((0, 1),)})
    assert group.fields == {"messages": "kept"}
    assert grouped(CHAT).conversational


def test_messages_keep_what_a_template_may_read() -> None:
    """None stands where a table has no value."""
    thought = {**BLUE, "reasoning_content": "Hm.", "name": None, "tool_calls": []}
    (group,) = grouped({**CHAT, "prompt": [{**USER, "name": "Ann"}], "chosen": [thought]})
    assert group.prompt == [{**USER, "name": "Ann"}]
    assert group.responses == ([{**BLUE, "reasoning_content": "Hm."}], [SEVEN])
    (group,) = grouped({**CHAT, "chosen": [thought], "rejected": [BLUE]})  # they differ in what was thought
    assert group.pairs == {"data": ((0, 1),)}
    (group,) = grouped({**CHAT, "prompt": [{"role": "developer", "content": "Be brief."}, USER]})
    assert group.prompt[0]["role"] == "developer"  # type: ignore[index]


def test_variables_of_the_template_make_a_prompt() -> None:
    """A row's own go before those of all rows; rows with others are other prompts."""
    thinking, silent = ({**CHAT, "chat_template_kwargs": {"thinking": flag, "other": None}} for flag in (True, False))
    groups = grouped(thinking, silent, CHAT, thinking, {**CHAT, "chat_template_kwargs": None})
    assert [group.template_kwargs for group in groups] == [{"thinking": True}, {"thinking": False}, {}]
    assert all("chat_template_kwargs" not in group.fields for group in groups)
    with_more = grouped(thinking, CHAT, template_kwargs={"thinking": False, "brief": True})
    assert [group.template_kwargs for group in with_more] == [
        {"thinking": True, "brief": True},
        {"thinking": False, "brief": True},
    ]
    assert with_more.fingerprint != grouped(thinking, CHAT).fingerprint
    assert grouped(CHAT, template_kwargs={}).fingerprint == grouped(CHAT).fingerprint
    rows = [group.prompt_row for group in with_more]
    again = grouped(*({**CHAT, **row} for row in rows))
    assert [group.template_kwargs for group in again] == [group.template_kwargs for group in with_more]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "rests"),
    [
        ("Name one: blue", "Name one: red", "Name one:", (" blue", " red")),
        ("Q\nblue", "Q\nred", "Q\n", ("blue", "red")),
        ("Q: yes", "Q: yes, no", "Q: ye", ("s", "s, no")),
        ([USER, BLUE], [USER, SEVEN], [USER], ([BLUE], [SEVEN])),
        ([USER, SEVEN, USER, BLUE], [USER, SEVEN, USER, SEVEN], [USER, SEVEN, USER], ([BLUE], [SEVEN])),
    ],
)
def test_implicit_prompt(chosen: Any, rejected: Any, prompt: Any, rests: Any) -> None:
    (group,) = grouped({"chosen": chosen, "rejected": rejected})
    assert (group.prompt, group.responses) == (prompt, rests)


def test_implicit_prompt_is_what_trl_extracts() -> None:
    from trl.data_utils import extract_prompt

    rng = random.Random(0)
    for _ in range(200):
        common = "P" + "".join(rng.choices("ab ", k=rng.randint(1, 9)))
        row = {side: common + "".join(rng.choices("ab ", k=4)) + "." for side in ("chosen", "rejected")}
        if row["chosen"] == row["rejected"]:
            continue
        (group,) = grouped(row)
        theirs = extract_prompt(dict(row))
        assert (group.prompt, *group.responses) == (theirs["prompt"], theirs["chosen"], theirs["rejected"])


def test_plain_prompt_beside_whole_conversations() -> None:
    """As in UltraFeedback: the prompt only repeats the user's message."""
    (group,) = grouped({"prompt": USER["content"], "chosen": [USER, BLUE], "rejected": [USER, SEVEN]})
    assert (group.prompt, group.responses) == ([USER], ([BLUE], [SEVEN]))


def test_group_rows() -> None:
    row = {"prompt": "Q\n", "responses": ["a", "b", "a"], "pairs": [[0, 1], [1, 2], [0, 2]], "chosen": None}
    groups = grouped({**row, "score": [1, 2.5, 1], "tag": ["x", "y", "z"], "source": "s"})
    (group,) = groups
    assert group.responses == ("a", "b")
    assert group.pairs == {"data": ((0, 1), (1, 0))}  # the third pair names the same text twice
    assert group.columns == {"score": (1.0, 2.5)}
    assert group.fields == {"tag": ["x", "y", "z"], "source": "s", "chosen": None}
    assert groups.counts["identical_pairs"] == 1


def test_label_sets_stay_apart_and_rows_of_a_prompt_add_to_them() -> None:
    """The second row names the same texts in the other order."""
    first = {"prompt": "Q\n", "responses": ["a", "b"], "pairs": {"better": [[0, 1]], "safer": [[1, 0]]}}
    second = {"prompt": "Q\n", "responses": ["b", "a", "c"], "pairs": {"safer": [[0, 1], [2, 1]], "better": None}}
    groups = grouped(first, second, {"prompt": "R\n", "responses": ["a", "b"], "pairs": {"safer": [[0, 1]]}})
    assert groups[0].pairs == {"better": ((0, 1),), "safer": ((1, 0), (1, 0), (2, 0))}
    assert groups[1].pairs == {"safer": ((0, 1),)}
    assert groups.counts["pairs"] == 5
    assert groups.label_sets == {"better": 1, "safer": 4}


def test_group_rows_without_pairs() -> None:
    groups = grouped({"prompt": "Q\n", "responses": ["a", "b"]})
    assert groups[0].pairs == {}
    assert groups.counts["pairs"] == 0
    assert groups.warnings == []


@pytest.mark.parametrize("sides", [("chosen_score", "rejected_score"), ("score_chosen", "score_rejected")])
def test_columns_of_pair_rows(sides: tuple[str, str]) -> None:
    row = {**PAIR, sides[0]: 8, sides[1]: 2.5, "chosen_model": "A", "rejected_model": "B", "id": 7}
    (group,) = grouped(row, columns=["score"])
    assert group.columns == {"score": (8.0, 2.5)}
    assert group.fields == {"chosen_model": "A", "rejected_model": "B", "id": 7}


def test_columns_meet_across_rows() -> None:
    groups = grouped(
        {**ROWS[0], "score_chosen": 3, "score_rejected": 1, "source": "first"},
        {**ROWS[2], "score_chosen": 2, "score_rejected": None, "source": "second"},
    )
    (group,) = groups
    assert group.columns == {"score": (3.0, 1.0, 2.0)}
    assert group.fields == {"source": "first"}


# --- bad rows -----------------------------------------------------------------------------------------------


def without(row: Row, name: str) -> Row:
    return {key: value for key, value in row.items() if key != name}


RESPONSES = {"prompt": "Q\n", "responses": ["a", "b"]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (without(PAIR, "chosen"), "chosen: missing field"),
        (without(PAIR, "rejected"), "rejected: missing field"),
        (without(RESPONSES, "prompt"), "prompt: missing field"),
        ({**PAIR, "prompt": None}, "prompt: is null"),
        ({**PAIR, "chosen": None}, "chosen: is null"),
        ({**PAIR, "chosen": 3}, "chosen: 3 is neither text nor a list of messages"),
        ({**PAIR, "chosen": " \n"}, "chosen: the response is empty or only white space"),
        ({**PAIR, "prompt": " "}, "prompt: is empty"),
        ({**PAIR, "rejected": "\ud83d"}, "rejected: holds half of a surrogate pair"),
        ({**PAIR, "tools": [{}]}, "tools: tools are not supported"),
        ({**PAIR, "prompt": [USER]}, "chosen: is plain text in one field and a conversation in another"),
        ({**PAIR, "rejected": [SEVEN]}, "rejected: one of chosen and rejected is text"),
        ({"chosen": "blue", "rejected": "red"}, "prompt: chosen and rejected begin with nothing in common"),
        ({"chosen": [BLUE], "rejected": [SEVEN]}, "prompt: chosen and rejected begin with nothing in common"),
        ({**CHAT, "prompt": []}, "prompt: [] is neither text nor a list of messages"),
        ({**CHAT, "prompt": ["hello"]}, "prompt[0]: 'hello' is no message"),
        ({**CHAT, "prompt": [{"role": "user"}]}, "prompt[0]: {'role': 'user'} is no message"),
        ({**CHAT, "prompt": [{**USER, "role": "human"}]}, "prompt[0].role: unknown role 'human'"),
        ({**CHAT, "prompt": [{**USER, "content": 5}]}, "prompt[0].content: 5 is not text"),
        ({**CHAT, "chosen": [{**BLUE, "tool_calls": [{}]}]}, "chosen[0].tool_calls: tool calls are not supported"),
        ({**CHAT, "chosen": [{"role": "assistant", "tool_calls": [{}]}]}, "chosen[0].tool_calls: tool calls are not"),
        ({**CHAT, "chosen": [{**BLUE, "at": b"x"}]}, "chosen[0].at: b'x' is no value of JSON"),
        ({**CHAT, "chosen": [{**BLUE, "thinking": "\ud83d"}]}, "chosen: holds half of a surrogate pair"),
        ({**CHAT, "chat_template_kwargs": "x"}, "chat_template_kwargs: 'x' is no mapping"),
        ({**CHAT, "chat_template_kwargs": {"tools": []}}, "chat_template_kwargs: holds 'tools'"),
        ({**PAIR, "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs: has no effect on plain text"),
        ({**CHAT, "chosen": [USER, BLUE]}, "chosen: holds a message of role 'user'"),
        ({**CHAT, "chosen": [{**BLUE, "content": ""}]}, "chosen: the response is empty"),
        ({**RESPONSES, "responses": ["a", ""]}, "responses[1]: the response is empty"),
        ({**RESPONSES, "responses": []}, "responses: there is none"),
        ({**RESPONSES, "pairs": 3}, "pairs: 3 is not a list"),
        ({**RESPONSES, "pairs": [[0, 2]]}, "pairs[0]: [0, 2] is out of range for 2 responses"),
        ({**RESPONSES, "pairs": [[0, 1], [-1, 0]]}, "pairs[1]: [-1, 0] is out of range"),
        ({**RESPONSES, "pairs": [[1, 1]]}, "pairs[0]: [1, 1] names one response twice"),
        ({**RESPONSES, "pairs": {"safer": [[0, 1]], "better": [[1, 1]]}}, "pairs.better[0]: [1, 1] names one response"),
        ({**RESPONSES, "pairs": [[0, True]]}, "pairs[0]: [0, True] is not two integers"),
    ],
)
def test_bad_rows(row: Row, expected: str) -> None:
    with pytest.raises(InputError) as error:
        grouped({**CHAT, "prompt": [USER, USER]} if isinstance(row.get("prompt"), list) else ROWS[1], row)
    assert complaint(error).startswith(f"data set:row 1:{expected}")
    assert "fix: " in complaint(error)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, "score: missing column"),
        ({"chosen_score": 1}, "score: 1 gives no number for each response"),
        ({"chosen_score": "1", "rejected_score": "2"}, "score: '1' gives no number"),
        ({"chosen_score": 1, "rejected_score": None}, "score: None is not a finite number"),
        ({"chosen_score": 1, "rejected_score": "2"}, "score: '2' is not a finite number"),
        ({"chosen_score": 1, "rejected_score": False}, "score: False is not a finite number"),
        ({"score_chosen": float("nan"), "score_rejected": 1}, "score: nan is not a finite number"),
        ({"score_chosen": 1, "score_rejected": float("-inf")}, "score: -inf is not a finite number"),
        ({"score_chosen": 10**400, "score_rejected": 1}, "score: 1000"),
    ],
)
def test_bad_columns(extra: Row, expected: str) -> None:
    with pytest.raises(InputError) as error:
        grouped({**PAIR, **extra}, columns=["score"])
    assert complaint(error).startswith(f"data set:row 0:{expected}")


def test_bad_column_beside_responses() -> None:
    with pytest.raises(InputError, match=r"row 0:score: \[1\] gives no number for each response"):
        grouped({**RESPONSES, "score": [1]}, columns=["score"])
    with pytest.raises(InputError, match="row 0:score: nan is not a finite number"):
        grouped({**RESPONSES, "score": [1, float("nan")]}, columns=["score"])


def test_contradicting_values() -> None:
    """The second row says the same of "Seven." again, the third says something else."""
    agreeing = {**PAIR, "score_chosen": 2, "score_rejected": 1}
    with pytest.raises(InputError, match="row 2:score: one response has 5 here and 1 before"):
        grouped(agreeing, {**agreeing, "chosen": "Red."}, {**PAIR, "score_chosen": 2, "score_rejected": 5})
    with pytest.raises(InputError, match="row 0:score: one response has 2 here and 1 before"):
        grouped({**RESPONSES, "responses": ["a", "a"], "score": [1, 2]})


def test_chat_and_plain_rows_mixed() -> None:
    with pytest.raises(InputError, match="row 1:prompt: is a conversation, but the rows before are plain text"):
        grouped(PAIR, CHAT)
    with pytest.raises(InputError, match="row 1:prompt: is plain text, but the rows before are a conversation"):
        grouped(CHAT, PAIR)


def test_twenty_problems_at_once() -> None:
    with pytest.raises(InputError) as error:
        grouped(PAIR, *[{**PAIR, "chosen": None}] * 50)
    assert [problem.where for problem in error.value.problems] == [f"data set:row {i}" for i in range(1, 21)]


def test_unknown_format_and_no_rows() -> None:
    with pytest.raises(InputError, match="unknown format 'sft'; fix: use one of: preference"):
        grouped(PAIR, format="sft")
    with pytest.raises(InputError, match="holds no rows"):
        grouped()


# --- repetitions --------------------------------------------------------------------------------------------


def test_identical_pairs_are_dropped_and_counted() -> None:
    groups = grouped(PAIR, {**PAIR, "rejected": "Blue."}, {**PAIR, "prompt": "Again.\n", "chosen": "Seven."})
    assert [group.pairs for group in groups] == [{"data": ((0, 1),)}, {}]
    assert groups.counts["identical_pairs"] == 2
    assert groups.warnings == ["2 pairs dropped: chosen equals rejected", "1 prompts have no pair"]


def test_all_pairs_identical() -> None:
    with pytest.raises(InputError, match="no pair is left: in all 2 chosen equals rejected"):
        grouped(*[{**PAIR, "rejected": "Blue."}] * 2)


def test_duplicate_rows_keep_their_weight() -> None:
    groups = grouped(PAIR, PAIR, {**PAIR, "chosen": "Seven.", "rejected": "Blue."}, PAIR)
    assert groups[0].pairs == {"data": ((0, 1), (0, 1), (1, 0), (0, 1))}
    assert groups.counts["duplicate_rows"] == 2
    assert groups.counts["pairs"] == 4
    assert groups.warnings == ["2 rows repeat an earlier row: their pairs count again"]


def naive_groups(rows: list[Row]) -> list[tuple[str, list[str], list[tuple[int, int]]]]:
    found: dict[str, tuple[list[str], list[tuple[int, int]]]] = {}
    for row in rows:
        responses, pairs = found.setdefault(row["prompt"], ([], []))
        for side in ("chosen", "rejected"):
            if row[side] not in responses:
                responses.append(row[side])
        pair = (responses.index(row["chosen"]), responses.index(row["rejected"]))
        if pair[0] != pair[1]:
            pairs.append(pair)
    return [(prompt, *rest) for prompt, rest in found.items()]


@pytest.mark.parametrize("seed", range(5))
def test_grouping_is_what_a_loop_finds(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    rows = [
        {"prompt": f"p{rng.randrange(40)}", "chosen": rng.choice("abcd"), "rejected": rng.choice("abcd")}
        for _ in range(300)
    ]
    path = tmp_path / "rows.jsonl"
    write_rows(path, rows)
    groups = group_rows(open_rows(path))
    expected = naive_groups(rows)
    assert [(g.prompt, list(g.responses), list(g.pairs.get("data", ()))) for g in groups] == expected
    assert groups.counts == {
        "groups": len(expected),
        "rows": 300,
        "responses": sum(len(responses) for _, responses, _ in expected),
        "pairs": sum(len(pairs) for _, _, pairs in expected),
        "identical_pairs": sum(row["chosen"] == row["rejected"] for row in rows),
        "duplicate_rows": 300 - len({tuple(row.values()) for row in rows}),
    }
    lines = {row["prompt"]: number for number, row in reversed(list(enumerate(rows, start=1)))}
    assert [g.where for g in groups] == [f"{path}:{lines[g.prompt]}" for g in groups]  # type: ignore[index]


# --- selections ---------------------------------------------------------------------------------------------


def many(n: int, start: int = 0) -> list[Row]:
    return [{**PAIR, "prompt": f"Question {i}\n"} for i in range(start, start + n)]


def test_select_and_slice() -> None:
    groups = grouped(*many(6), *many(2))
    chosen = groups.select([4, 0])
    assert [group.prompt for group in chosen] == ["Question 4\n", "Question 0\n"]
    assert chosen.counts["rows"] == 3
    assert [group.prompt for group in groups[4:]] == ["Question 4\n", "Question 5\n"]
    assert chosen.fingerprint != groups.fingerprint
    assert chosen.fingerprint == grouped(*many(6), *many(2)).select([4, 0]).fingerprint
    assert chosen.warnings == groups.warnings != []
    with pytest.raises(IndexError):
        chosen[2]


def test_held_out_prompts_depend_on_prompts_and_seed_alone() -> None:
    rows = many(50) + many(50)
    shuffled = random.Random(1).sample(rows, len(rows))
    parts = [grouped(*order).split_held_out(10, seed=3) for order in (rows, shuffled)]
    for train, held_out in parts:
        assert (len(train), len(held_out), overlap(train, held_out)) == (40, 10, 0)
    assert {g.prompt for g in parts[0][1]} == {g.prompt for g in parts[1][1]}
    other = grouped(*rows).split_held_out(10, seed=4)[1]
    assert {g.prompt for g in other} != {g.prompt for g in parts[0][1]}
    in_order = [int(str(g.prompt).split()[1]) for g in parts[0][0]]
    assert in_order == sorted(in_order)


def test_held_out_bounds() -> None:
    groups = grouped(*many(3))
    train, held_out = groups.split_held_out(0, seed=0)
    assert (len(train), len(held_out)) == (3, 0)
    with pytest.raises(InputError, match="3 prompts cannot be held out of 3"):
        groups.split_held_out(3, seed=0)


def test_overlap_of_two_files(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, many(5, start=3))
    assert overlap(grouped(*many(5)), group_rows(open_rows(path))) == 2


def test_a_file_that_changes_under_its_groups_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, many(3))
    groups = group_rows(open_rows(path))
    with path.open("r+b") as file:
        file.write(json.dumps({**PAIR, "prompt": "Question 9\n"}).encode())
    with pytest.raises(IntegrityError, match="changed since it was read"):
        groups[0]
    assert groups[1].prompt == "Question 1\n"


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, modpo.data.groups, modpo.data.tokens\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow', 'trl') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
