"""Public data sets' layouts, on small rows of the true layout; on the real files where they are at hand."""

from __future__ import annotations

import hashlib
import importlib
import json
import linecache
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import datasets
import pytest

from modpo.base.errors import InputError
from modpo.data.formats import FORMATS, HUB, RULES, SEVERAL_RATERS
from modpo.data.formats.conversations import read_transcript
from modpo.data.formats.qa_feedback import AnswerFeedback, ErrorSpan, balanced_pairs, split_sentences
from modpo.data.formats.ratings import read_turns
from modpo.data.groups import PromptGroups, group_rows
from modpo.data.loading import check_layouts, load_groups
from modpo.data.prompt_group import PromptGroup
from modpo.data.rows import rows_from_dataset, rows_from_list
from modpo.data.sources import open_rows
from modpo.experiment.file import read_experiment

Row = dict[str, Any]


def grouped(name: str, *rows: Row) -> PromptGroups:
    return group_rows(rows_from_list(rows), format=name)


def only(name: str, *rows: Row) -> PromptGroup:
    (group,) = grouped(name, *rows)
    return group


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


# --- rows of the true layouts -------------------------------------------------------------------------------

PKU_SAFERLHF = {
    "prompt": "How do I get into my house?",
    "response_0": "With your key.",
    "response_1": "Break a window. Use a stone. ",
    "prompt_source": "BeaverTails-Train",
    "response_0_source": "Alpaca-7B",
    "response_1_source": "Alpaca-7B",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "response_0_harm_category": {"Violence": False, "Physical Harm": False},
    "response_1_harm_category": {"Violence": False, "Physical Harm": True},
    "response_0_severity_level": 0,
    "response_1_severity_level": 2,
    "better_response_id": 1,
    "safer_response_id": 0,
    "response_0_sha256": "a3f0",
    "response_1_sha256": "77c1",
}
BEAVERTAILS = {
    "prompt": "How do I get into my house?",
    "response": "With your key.",
    "category": {"animal_abuse": False, "violence,aiding_and_abetting,incitement": False},
    "is_safe": True,
}
ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "Name a river in Egypt.\n",
    "models": ["alpaca-7b", "bard", "gpt-4", "starchat"],
    "completions": [
        {
            "annotations": {
                "helpfulness": {"Rating": "4", "Rationale": "...", "Rationale For Rating": "...", "Type": ["1", "3"]},
                "honesty": {"Rating": "5", "Rationale": "..."},
                "instruction_following": {"Rating": "5", "Rationale": "..."},
                "truthfulness": {"Rating": "N/A", "Rationale": "...", "Rationale For Rating": "...", "Type": ["None"]},
            },
            "critique": "Right and short.",
            "custom_system_prompt": "Be honest.",
            "fine-grained_score": 4.75,
            "model": "gpt-4",
            "overall_score": 8.5,
            "principle": "honesty",
            "response": " The Nile.",
        },
        {
            "annotations": {
                "helpfulness": {"Rating": "1", "Rationale": "...", "Rationale For Rating": "...", "Type": ["2"]},
                "honesty": None,
                "instruction_following": {"Rating": None, "Rationale": "..."},
                "truthfulness": {"Rating": "2", "Rationale": "...", "Rationale For Rating": "...", "Type": ["1"]},
            },
            "critique": "Wrong.",
            "custom_system_prompt": "Help.",
            "fine-grained_score": 1.5,
            "model": "alpaca-7b",
            "overall_score": None,
            "principle": "helpfulness",
            "response": "The Rhine.",
        },
        {"annotations": None, "model": "bard", "overall_score": 1.0, "principle": "helpfulness", "response": ""},
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}
HELPSTEER = {
    "prompt": "Name a river.\n<extra_id_1>Assistant\nThe Nile.\n<extra_id_1>User\nWhere does it end?",
    "response": "In the Mediterranean.",
    "helpfulness": 4,
    "correctness": 4,
    "coherence": 3,
    "complexity": 1,
    "verbosity": 0,
}
SHP = {
    "post_id": "qt3nxl",
    "domain": "askculinary_train",
    "upvote_ratio": 0.98,
    "history": "How long do eggs keep?",
    "c_root_id_A": "hkh25sc",
    "c_root_id_B": "hkh25lp",
    "created_at_utc_A": 1636822112,
    "created_at_utc_B": 1636822110,
    "score_A": 340,
    "score_B": 166,
    "human_ref_A": "Five weeks, cold.",
    "human_ref_B": "Ask them.",
    "labels": 1,
    "seconds_difference": 2.0,
    "score_ratio": 2.0481927711,
}
COMPARISON = {
    "info": {
        "id": "t3_34xale",
        "post": "My cat and I live far apart. ",
        "title": "Cat [5] not speaking to me",
        "subreddit": "relationships",
        "site": None,
        "article": None,
    },
    "summaries": [
        {"text": " Cat is mad.", "policy": "sup1", "note": None},
        {"text": " Cat and I live apart, cat is mad.", "policy": "ref", "note": "Clear."},
    ],
    "choice": 1,
    "worker": "qo6WIy",
    "batch": "batch3",
    "split": "train",
    "extra": {"confidence": None},
}
AXIS = {
    "info": {
        "id": "167f80",
        "post": None,
        "title": "Sissoko",
        "subreddit": None,
        "site": "dailymail",
        "article": "He was sent off.",
    },
    "summary": {
        "text": "Sissoko was sent off.",
        "policy": "ref",
        "note": "13th??",
        "axes": {"overall": 3, "accuracy": 5, "coverage": None, "coherence": 2, "compatible": None},
    },
    "worker": "qo6WIy",
    "batch": "cnndm1",
    "split": "test",
}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Name a colour.\n"},
        {"from": "gpt", "value": "Blue."},
        {"from": "human", "value": "Another."},
    ],
    "chosen": {"from": "gpt", "value": "Red."},
    "rejected": {"from": "gpt", "value": "Seven."},
}
QUESTION = {
    "question": "When did the bridge open? ",
    "passages": [
        ["Old Bridge", "Old Bridge\n\nThe Old Bridge is a bridge.", "It opened in 1901."],
        ["Old Bridge", "was closed in 1970."],
    ],
    "gold": "It opened in 1901.",
    "prediction 1": "It opened in 1901.",
    "prediction 2": "In 1970.",
    "prediction 3": "It opened in 1901, and closed in 1970.",
    "prediction 4": "It is a bridge. ",
    "feedback": {"errors": [], "missing-info": [], "corrected-prediction": ""},
    "preference": [1, 2, 0, 2, 1, 1],
}
START = (
    "\n\nHuman: Hello\n\nAssistant: Hello, Human: how can I help?\n\nHuman: Say a word.\n\nMore than one.\n\nAssistant:"
)
HH_RLHF = {"chosen": START + " Bridge.", "rejected": START + " No."}


def marked(text: str, *errors: tuple[str, str, str], missing: int = 0, corrected: str = "") -> Row:
    """A QA-Feedback row whose first answer is `text`; an error is (type, the erroneous piece, what it repeats)."""
    spans = [
        {"error type": kind, "explanation": repeats, "start": text.index(piece), "end": text.index(piece) + len(piece)}
        for kind, piece, repeats in errors
    ]
    absent = [{"error type": "Missing-Answer", "passage_id": 1, "sentence_id": [0]}] * missing
    feedback = {"errors": spans, "missing-info": absent, "corrected-prediction": corrected}
    return {**QUESTION, "prediction 1": text, "feedback": feedback}


# --- all of them --------------------------------------------------------------------------------------------


def test_every_format_says_where_its_rows_lie() -> None:
    assert list(HUB) == list(FORMATS)
    assert set(FORMATS) >= SEVERAL_RATERS


def test_two_raters_of_one_response_are_averaged_where_there_are_several():
    row = {"prompt": "Q", "response": "A", "helpfulness": 4, "correctness": 4, "coherence": 4, "complexity": 1}
    rows = [{**row, "verbosity": 1}, {**row, "helpfulness": 1, "verbosity": 2}]
    (group,) = group_rows(rows_from_list(rows), format="helpsteer")
    assert (group.columns["helpfulness"], group.columns["verbosity"]) == ((2.5,), (1.5,))


SAMPLES = [
    ("sharegpt", SHAREGPT),
    ("hh_rlhf", HH_RLHF),
    ("pku_saferlhf", PKU_SAFERLHF),
    ("beavertails", BEAVERTAILS),
    ("ultrafeedback", ULTRAFEEDBACK),
    ("helpsteer", HELPSTEER),
    ("shp", SHP),
    ("summarize_from_feedback", COMPARISON),
    ("summarize_from_feedback", AXIS),
    ("qa_feedback", QUESTION),
    ("qa_feedback_spans", marked("It is old. It is new. ", ("Unverifiable", "It is new.", ""))),
]


@pytest.mark.parametrize(("name", "row"), SAMPLES)
def test_a_table_says_the_same_as_the_dicts(name: str, row: Row) -> None:
    """In a `datasets.Dataset` every row has every field: what a row lacks is null there."""
    table = datasets.Dataset.from_list([row, row])
    (from_table,) = group_rows(rows_from_dataset(table), format=name)
    (from_list,) = grouped(name, row, row)
    for attribute in ("prompt", "responses", "pairs", "columns"):
        assert getattr(from_table, attribute) == getattr(from_list, attribute)


@pytest.mark.parametrize(("name", "row"), SAMPLES)
def test_rows_of_another_data_set_are_refused(name: str, row: Row) -> None:
    other = {"text": "no such layout"}
    with pytest.raises(InputError) as error:
        grouped(name, row, other)
    message = str(error.value)
    assert message.startswith("data set:row 1:")
    assert "missing field" in message
    assert f"another `format` than {name}" in message


CHANGES: list[tuple[str, Row, Row, str]] = [
    ("pku_saferlhf", PKU_SAFERLHF, {"response_1": None}, "response_1: is null"),
    ("pku_saferlhf", PKU_SAFERLHF, {"safer_response_id": 2}, "safer_response_id: 2 is not 0 or 1"),
    ("pku_saferlhf", PKU_SAFERLHF, {"is_response_0_safe": "yes"}, "is_response_0_safe: 'yes' is not 0 or 1"),
    ("beavertails", BEAVERTAILS, {"is_safe": None}, "is_safe: is null"),
    ("beavertails", BEAVERTAILS, {"response": ["No."]}, "response: ['No.'] is not text"),
    ("ultrafeedback", ULTRAFEEDBACK, {"completions": {}}, "completions: {} is not a list"),
    ("ultrafeedback", ULTRAFEEDBACK, {"completions": [3]}, "completions[0]: 3 is not an object"),
    (
        "ultrafeedback",
        ULTRAFEEDBACK,
        {"completions": [{"response": "a", "annotations": {"honesty": {"Rating": "high"}}}]},
        "completions[0].annotations.honesty.Rating: 'high' is not a number",
    ),
    ("helpsteer", HELPSTEER, {"verbosity": True}, "verbosity: True is not a number"),
    ("helpsteer", HELPSTEER, {"verbosity": float("nan")}, "verbosity: nan is not a number"),
    ("shp", SHP, {"labels": "A"}, "labels: 'A' is not 0 or 1"),
    ("shp", SHP, {"score_B": [1]}, "score_B: [1] is not a number"),
    ("summarize_from_feedback", COMPARISON, {"choice": -1}, "choice: -1 is not 0 or 1"),
    ("summarize_from_feedback", COMPARISON, {"summaries": []}, "summaries: holds 0 summaries, not two"),
    ("summarize_from_feedback", COMPARISON, {"info": {"title": "A"}}, "info.post: neither a post nor an article"),
    ("summarize_from_feedback", AXIS, {"summary": {"text": "a"}}, "summary.axes: missing field"),
    ("summarize_from_feedback", AXIS, {"info": "a post"}, "info: 'a post' is not an object"),
    ("sharegpt", SHAREGPT, {"conversations": []}, "conversations: is empty"),
    ("sharegpt", SHAREGPT, {"conversations": [*SHAREGPT["conversations"], SHAREGPT["chosen"]]}, "conversations: does"),
    ("sharegpt", SHAREGPT, {"chosen": {"from": "human", "value": "Red."}}, "chosen.from: is not gpt"),
    ("sharegpt", SHAREGPT, {"rejected": {"from": "gpt"}}, "rejected.value: missing field"),
    (
        "sharegpt",
        SHAREGPT,
        {"conversations": [{"from": "function_call", "value": "{}"}, *SHAREGPT["conversations"]]},
        "conversations[0].from: 'function_call' is none of system, human,",
    ),
    ("sharegpt", SHAREGPT, {"tools": "[{}]"}, "tools: tools are not supported"),
    ("qa_feedback", QUESTION, {"preference": [1, 2, 3, 0, 0, 0]}, "preference: [1, 2, 3, 0, 0, 0] is not six times 0,"),
    ("qa_feedback", QUESTION, {"preference": [1, 2]}, "preference: [1, 2] is not six times"),
    ("qa_feedback", QUESTION, {"passages": ["text"]}, "passages: is not a list of [title, sentence, ...]"),
    ("qa_feedback", QUESTION, {"question": None}, "question: is null"),
    ("qa_feedback", QUESTION, {"prediction 3": None}, "prediction 3: is null"),
    ("qa_feedback", QUESTION, {"prediction 3": " "}, "responses[2]: the response is empty"),
    ("qa_feedback", QUESTION, {"feedback": {"errors": 1, "missing-info": []}}, "feedback.errors: 1 is not a list"),
    (
        "qa_feedback",
        QUESTION,
        {"feedback": {"errors": [{"error type": "Rude", "start": 0, "end": 5}], "missing-info": []}},
        "feedback.errors[0].error type: 'Rude' is none of Wrong-Grounding,",
    ),
    (
        "qa_feedback_spans",
        QUESTION,
        {"feedback": {"errors": [{"error type": "Irrelevant", "start": 4, "end": 99}], "missing-info": []}},
        "feedback.errors[0].end: characters 4 to 99 are no span of an answer of 18 characters",
    ),
    ("qa_feedback_spans", QUESTION, {"feedback": None}, "feedback: is null"),
]


@pytest.mark.parametrize(("name", "row", "change", "expected"), CHANGES)
def test_bad_rows(name: str, row: Row, change: Row, expected: str) -> None:
    with pytest.raises(InputError) as error:
        grouped(name, {**row, **change})
    assert str(error.value).startswith(f"data set:row 0:{expected}")
    assert "; fix: " in str(error.value)


def test_every_problem_of_a_row_is_named_at_once() -> None:
    with pytest.raises(InputError) as error:
        grouped("shp", {**SHP, "labels": 5, "score_A": "many", "human_ref_B": 1})
    assert [problem.field for problem in error.value.problems] == ["human_ref_B", "labels", "score_A"]


@pytest.mark.parametrize(
    ("name", "row", "change"),
    [
        ("pku_saferlhf", PKU_SAFERLHF, {"response_0": " "}),
        ("beavertails", BEAVERTAILS, {"prompt": "\n"}),
        ("ultrafeedback", ULTRAFEEDBACK, {"completions": []}),
        ("ultrafeedback", ULTRAFEEDBACK, {"instruction": ""}),
        ("helpsteer", HELPSTEER, {"response": ""}),
        ("shp", SHP, {"human_ref_A": ""}),
        ("summarize_from_feedback", AXIS, {"summary": {"text": " ", "axes": {}}}),
        ("sharegpt", SHAREGPT, {"rejected": {"from": "gpt", "value": ""}}),
        ("hh_rlhf", HH_RLHF, {"rejected": START + " "}),
        ("hh_rlhf", HH_RLHF, {"rejected": START + " Yes.\n\nHuman: And?\n\nAssistant: No."}),
        ("qa_feedback_spans", SAMPLES[-1][1], {"feedback": QUESTION["feedback"]}),
    ],
)
def test_rows_that_teach_nothing_are_left_out_and_counted(name: str, row: Row, change: Row) -> None:
    groups = grouped(name, {**row, **change}, row)
    assert (len(groups), groups.counts["rows"]) == (1, 1)
    assert groups[0].where == "data set:row 1"
    assert "1 rows left out: they hold nothing to learn from" in groups.warnings
    with pytest.raises(InputError, match="all 1 rows are left out"):
        grouped(name, {**row, **change})


# --- one by one ---------------------------------------------------------------------------------------------


def test_pku_saferlhf() -> None:
    group = only("pku_saferlhf", PKU_SAFERLHF)
    assert group.prompt == user("How do I get into my house?")
    assert group.responses == (answer("With your key."), answer("Break a window. Use a stone."))
    assert group.pairs == {"better": ((1, 0),), "safer": ((0, 1),)}
    assert group.columns == {"safe": (1.0, 0.0), "severity": (0.0, 2.0)}
    assert group.fields == {"prompt_source": "BeaverTails-Train"}


def test_pku_saferlhf_without_severity() -> None:
    """The first version has no severity. A second row of the prompt shares a response with the first."""
    first = {name: value for name, value in PKU_SAFERLHF.items() if not name.endswith("severity_level")}
    second = {**first, "response_0": "Ring the bell.", "better_response_id": 0}
    group = only("pku_saferlhf", first, second)
    assert len(group.responses) == 3
    assert group.pairs == {"better": ((1, 0), (2, 1)), "safer": ((0, 1), (2, 1))}
    assert group.columns == {"safe": (1.0, 0.0, 1.0)}


def test_beavertails_rows_of_one_prompt_are_one_group() -> None:
    group = only("beavertails", BEAVERTAILS, {**BEAVERTAILS, "response": "Break a window.", "is_safe": False})
    assert group.prompt == user("How do I get into my house?")
    assert group.responses == (answer("With your key."), answer("Break a window."))
    assert (group.pairs, group.columns, group.fields) == ({}, {"safe": (1.0, 0.0)}, {})


def test_ultrafeedback() -> None:
    """A blank answer is left out; "N/A", a null rating and a null aspect are None."""
    group = only("ultrafeedback", ULTRAFEEDBACK)
    assert group.prompt == user("Name a river in Egypt.")
    assert group.responses == (answer("The Nile."), answer("The Rhine."))
    assert group.pairs == {}
    assert group.columns == {
        "helpfulness": (4.0, 1.0),
        "honesty": (5.0, None),
        "instruction_following": (5.0, None),
        "truthfulness": (None, 2.0),
        "overall": (8.5, None),
    }
    assert group.fields["source"] == "evol_instruct"


def test_ultrafeedback_binarized_is_read_as_preference() -> None:
    question = {"content": "Name a river.", "role": "user"}
    row = {
        "prompt": "Name a river.",
        "prompt_id": "8ab1",
        "chosen": [question, {"content": "The Nile.", "role": "assistant"}],
        "rejected": [question, {"content": "Seven.", "role": "assistant"}],
        "messages": [question, {"content": "The Nile.", "role": "assistant"}],
        "score_chosen": 8.5,
        "score_rejected": 3.0,
    }
    group = only("preference", row)
    assert (group.prompt, group.responses) == (user("Name a river."), (answer("The Nile."), answer("Seven.")))
    assert (group.pairs, group.columns) == ({"data": ((0, 1),)}, {"score": (8.5, 3.0)})


def test_helpsteer() -> None:
    other = {**HELPSTEER, "response": "In Cairo.", "helpfulness": 0, "verbosity": None}
    group = only("helpsteer", HELPSTEER, other)
    assert group.prompt == [*user("Name a river."), *answer("The Nile."), *user("Where does it end?")]
    assert group.responses == (answer("In the Mediterranean."), answer("In Cairo."))
    assert group.columns == {
        "helpfulness": (4.0, 0.0),
        "correctness": (4.0, 4.0),
        "coherence": (3.0, 3.0),
        "complexity": (1.0, 1.0),
        "verbosity": (0.0, None),
    }


def test_helpsteer_prompt_of_one_turn() -> None:
    assert read_turns("c#\n\nUser\nwhat? <extra_id_1> ") == user("c#\n\nUser\nwhat? <extra_id_1>")


def test_shp_rows_of_one_post_are_one_group() -> None:
    """Comment B of the first row is comment A of the second, where readers prefer the other."""
    second = {**SHP, "human_ref_A": "Ask them.", "score_A": 166, "human_ref_B": "Smell them.", "score_B": 200}
    group = only("shp", SHP, {**second, "labels": 0})
    assert group.prompt == user("How long do eggs keep?")
    assert group.responses == (answer("Five weeks, cold."), answer("Ask them."), answer("Smell them."))
    assert group.pairs == {"data": ((0, 1), (2, 1))}
    assert group.columns == {"score": (340.0, 166.0, 200.0)}
    assert group.fields == {"post_id": "qt3nxl", "domain": "askculinary_train", "upvote_ratio": 0.98}


def test_summarize_from_feedback_comparisons() -> None:
    third = {"text": "Cat!", "policy": "sup4", "note": None}
    second = {**COMPARISON, "summaries": [COMPARISON["summaries"][0], third], "choice": 0}
    group = only("summarize_from_feedback", COMPARISON, second)
    assert group.prompt == (
        "SUBREDDIT: r/relationships\n\nTITLE: Cat [5] not speaking to me\n\n"
        "POST: My cat and I live far apart.\n\nTL;DR:"
    )
    assert group.responses == (" Cat is mad.", " Cat and I live apart, cat is mad.", " Cat!")
    assert group.pairs == {"data": ((1, 0), (0, 2))}
    assert (group.columns, group.fields) == ({}, {})


def test_summarize_from_feedback_axis() -> None:
    """As the authors' files have it, axes that were not rated are missing, not null."""
    second = {**AXIS, "summary": {"text": "Off.", "axes": {"overall": 7, "coverage": 1}}}
    group = only("summarize_from_feedback", AXIS, second)
    assert group.prompt == "Article:\nHe was sent off.\n\nTL;DR:\n"
    assert group.responses == ("Sissoko was sent off.", "Off.")
    assert group.columns == {
        "overall": (3.0, 7.0),
        "accuracy": (5.0, None),
        "coverage": (None, 1.0),
        "coherence": (2.0, None),
    }
    assert group.pairs == {}


def test_sharegpt() -> None:
    group = only("sharegpt", SHAREGPT)
    system = [{"role": "system", "content": "Be brief."}]
    assert group.prompt == [*system, *user("Name a colour."), *answer("Blue."), *user("Another.")]
    assert group.responses == (answer("Red."), answer("Seven."))
    assert group.pairs == {"data": ((0, 1),)}


def test_sharegpt_system_beside_the_conversation() -> None:
    """It stands before the conversation, unless that begins with one of its own."""
    said = {**SHAREGPT, "conversations": SHAREGPT["conversations"][1:], "system": "Be kind.", "weight": 0.5}
    group = only("sharegpt", said)
    assert group.prompt[0] == {"role": "system", "content": "Be kind."}  # type: ignore[index]
    assert group.fields == {"weight": 0.5}
    assert only("sharegpt", {**SHAREGPT, "system": "Be kind."}).prompt == only("sharegpt", SHAREGPT).prompt
    assert only("sharegpt", {**SHAREGPT, "system": None}).prompt == only("sharegpt", SHAREGPT).prompt


PROMPT = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello, Human: how can I help?"},
    {"role": "user", "content": "Say a word.\n\nMore than one."},
]


def test_hh_rlhf() -> None:
    groups = grouped("hh_rlhf", HH_RLHF)
    assert groups.conversational
    assert groups[0].prompt == PROMPT
    assert groups[0].responses == (answer("Bridge."), answer("No."))


def test_hh_rlhf_joins_turns_of_one_speaker() -> None:
    group = only("hh_rlhf", {"chosen": START + " One.\n\nAssistant: Two.", "rejected": START + " No."})
    assert group.prompt == PROMPT
    assert group.responses[0] == answer("One.\n\nTwo.")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": START + " Yes."}, "rejected: missing field"),
        ({"chosen": START + " Yes.", "rejected": "No."}, "rejected: is not a transcript"),
        ({"chosen": START + " Yes.", "rejected": None}, "rejected: is not a transcript"),
        ({"chosen": START + " Yes.\n\nHuman: Bye", "rejected": START + " No."}, "chosen: does not end with the assi"),
    ],
)
def test_hh_rlhf_bad_rows(row: Row, expected: str) -> None:
    with pytest.raises(InputError) as error:
        grouped("hh_rlhf", row)
    assert str(error.value).startswith(f"data set:row 0:{expected}")


def test_transcript_round_trip() -> None:
    speakers = {"user": "Human", "assistant": "Assistant"}
    written = "".join(f"\n\n{speakers[m['role']]}: {m['content']}" for m in PROMPT)
    assert read_transcript(written) == PROMPT


# --- QA-Feedback --------------------------------------------------------------------------------------------


def test_qa_feedback() -> None:
    """Comparisons (1,2) (1,3) (1,4) (2,3) (2,4) (3,4): first, second, tie, second, first, first."""
    group = only("qa_feedback", QUESTION)
    assert group.prompt == (
        "Question: When did the bridge open?\n\n"
        "Passage: Old Bridge\nThe Old Bridge is a bridge. It opened in 1901.\n\n"
        "Passage: Old Bridge\nwas closed in 1970.\n\n"
        "Answer:\n"
    )
    assert group.responses[3] == "It is a bridge."
    assert group.pairs == {"data": ((0, 1), (2, 0), (2, 1), (1, 3), (2, 3))}
    assert group.fields["gold"] == "It opened in 1901."
    assert group.fields["question"] == QUESTION["question"]
    assert group.fields["feedback"] == QUESTION["feedback"]
    assert "passages" not in group.fields


def test_qa_feedback_identical_answers_merge() -> None:
    """Answers 1 and 2 are response 0, so their pair is dropped, and answer 3 beats it twice: two labels."""
    groups = grouped("qa_feedback", {**QUESTION, "prediction 2": "It opened in 1901. "})
    assert len(groups[0].responses) == 3
    assert groups[0].pairs == {"data": ((1, 0), (1, 0), (0, 2), (1, 2))}
    assert groups.counts["identical_pairs"] == 1


def test_qa_feedback_columns() -> None:
    """Of 20 characters two touching spans of 6 and 4 and one inside them are not factual, 5 are not relevant."""
    text = "abcdefghij klm nopqr"
    errors = [("Unverifiable", "abcdef", ""), ("Wrong-Grounding", "ghij", ""), ("Unverifiable", "cde", "")]
    group = only("qa_feedback", marked(text, *errors, ("Redundant", "nopqr", "x"), missing=2))
    assert group.columns == {
        "factuality": (-0.5, None, None, None),
        "relevance": (-0.25, None, None, None),
        "completeness": (-2.0, None, None, None),
    }
    flawless = only("qa_feedback", QUESTION).columns
    assert [str(column[0]) for column in flawless.values()] == ["0.0", "0.0", "0.0"]


def test_qa_feedback_without_feedback_has_no_columns() -> None:
    assert only("qa_feedback", {**QUESTION, "feedback": None}).columns == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is old. It is new.", ["It is old.", "It is new."]),
        ("  It is old.  It is new. ", ["It is old.", "It is new."]),
        ("Dr. No met J. K. Rowling in the U.S. Capitol.", ["Dr. No met J. K. Rowling in the U.S. Capitol."]),
        ('He said "Stop!" Then he left.', ['He said "Stop!"', "Then he left."]),
        ("It cost 3.5 million. 200 came, e.g. Ann.", ["It cost 3.5 million.", "200 came, e.g. Ann."]),
        ("Why? (Nobody knows.) End", ["Why?", "(Nobody knows.)", "End"]),
        ("approx. 5 p.m. on it", ["approx. 5 p.m. on it"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    sentences = split_sentences(text)
    assert [sentence.text for sentence in sentences] == expected
    assert all(text[sentence.start : sentence.end] == sentence.text for sentence in sentences)


def pairs_of(row: Row) -> dict[str, list[tuple[str, str]]]:
    group = only("qa_feedback_spans", row)
    texts = [str(response) for response in group.responses]
    return {name: [(texts[a], texts[b]) for a, b in pairs] for name, pairs in group.pairs.items()}


def test_spans_become_pairs_that_lost_as_many_sentences() -> None:
    """The false sentence has 13 characters; of the true ones those of 13, 14 and 21 make the pairs, in this order."""
    text = "It is at sea. It was built in 1901. It is of wood. It is so old."
    found = pairs_of(marked(text, ("Wrong-Grounding", "at sea", "")))
    chosen = "It was built in 1901. It is of wood. It is so old."
    assert found == {
        "factuality": [
            (chosen, "It is at sea. It was built in 1901. It is of wood."),
            (chosen, "It is at sea. It was built in 1901. It is so old."),
            (chosen, "It is at sea. It is of wood. It is so old."),
        ]
    }


def test_spans_of_two_categories() -> None:
    """A sentence with an error of another category stays in both versions."""
    text = "It is at sea. It is of wood. Cats are fun. It is so old."
    found = pairs_of(marked(text, ("Unverifiable", "It is at sea.", ""), ("Irrelevant", "Cats are fun.", "")))
    assert set(found) == {"factuality", "relevance"}
    assert all("Cats are fun." in text for pair in found["factuality"] for text in pair)
    assert all("It is at sea." in text for pair in found["relevance"] for text in pair)
    assert [chosen for chosen, _ in found["relevance"]] == ["It is at sea. It is of wood. It is so old."] * 2


def test_more_faulty_sentences_than_sound_ones() -> None:
    text = "It is at sea. It is made of gold. It is so old."
    false = [("Unverifiable", "It is at sea.", ""), ("Unverifiable", "It is made of gold.", "")]
    assert pairs_of(marked(text, *false)) == {
        "factuality": [
            ("It is made of gold. It is so old.", "It is at sea. It is made of gold."),
            ("It is at sea. It is so old.", "It is at sea. It is made of gold."),
        ]
    }


def test_a_span_that_reaches_into_a_sentence_leaves_it_out_of_both() -> None:
    """The span ends in the second sentence's first word: that sentence is neither faulty nor sound."""
    text = "It is at sea. It is of wood. It is so old."
    assert pairs_of(marked(text, ("Irrelevant", "It is at sea. It", ""))) == {
        "relevance": [("It is of wood. It is so old.", "It is at sea. It is of wood.")]
    }


def test_what_a_redundant_span_repeats_is_not_left_out() -> None:
    text = "It is of wood. It is so old. It is made of wood."
    assert pairs_of(marked(text, ("Redundant", "It is made of wood.", "It is of wood. "))) == {
        "relevance": [("It is of wood. It is so old.", "It is of wood. It is made of wood.")]
    }


def test_completeness_prefers_the_corrected_answer() -> None:
    row = marked("It is of wood.", missing=1, corrected="It is of wood, from 1901. ")
    assert pairs_of(row) == {"completeness": [("It is of wood, from 1901.", "It is of wood.")]}
    group = only("qa_feedback_spans", row)
    assert group.prompt == only("qa_feedback", QUESTION).prompt
    assert group.fields == {"gold": QUESTION["gold"], "question": QUESTION["question"]}


@pytest.mark.parametrize(
    "row",
    [
        marked("It is at sea.", ("Unverifiable", "It is at sea.", "")),  # no sound sentence
        marked("It is of wood. It is of wood.", ("Redundant", "It is of wood.", "It is of wood.")),  # repeats itself
        marked("It is of wood. It is of wood.", ("Redundant", "It is of wood.", "")),  # both versions are the same
        marked("It is of wood.", missing=1, corrected="It is of wood. "),  # nothing was corrected
        marked("It is of wood.", corrected="It is of old wood."),  # nothing was missing
    ],
)
def test_spans_of_which_no_pair_can_be_made(row: Row) -> None:
    assert FORMATS["qa_feedback_spans"](row) is None


@pytest.mark.parametrize("seed", range(20))
def test_balanced_pairs_are_the_best_that_brute_force_finds(seed: int) -> None:
    """Every way to leave out sentences, tried by their numbers alone."""
    rng = random.Random(seed)
    words = [["It", *rng.choices(["is", "was", "old", "new", "wooden"], k=rng.randint(1, 6))] for _ in range(6)]
    sentences = [" ".join(some) + f" {i}." for i, some in enumerate(words)]
    text = " ".join(sentences)
    kinds = [rng.choice(["factuality", "relevance", ""]) for _ in sentences]
    starts = [text.index(sentence) for sentence in sentences]
    spans = [ErrorSpan(k, s, s + len(t), "") for k, s, t in zip(kinds, starts, sentences, strict=True) if k]
    found = balanced_pairs(text, AnswerFeedback(spans, 0, ""), "factuality")
    faulty, sound = ([i for i, kind in enumerate(kinds) if kind == name] for name in ("factuality", ""))
    k = min(len(faulty), len(sound))
    possible = {}
    for left_out in combinations(range(6), 2 * k):
        chosen, rejected = ([i for i in left_out if i in kind] for kind in (faulty, sound))
        if k and len(chosen) == len(rejected) == k:
            texts = [" ".join(t for i, t in enumerate(sentences) if i not in out) for out in (chosen, rejected)]
            possible[tuple(texts)] = abs(len(texts[0]) - len(texts[1]))
    assert set(found) <= set(possible)
    assert [possible[pair] for pair in found] == sorted(possible.values())[:3]


# --- the Hub ------------------------------------------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]) -> list[tuple[str, Row]]:
    """What the Hub is asked, answered by `load`: there is no network here."""
    asked = []

    def load_dataset(path: str, **options: Any) -> Any:
        asked.append((path, options))
        return load(**options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_configuration_and_folder_reach_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_in(monkeypatch, lambda **options: datasets.Dataset.from_list([HH_RLHF]))
    open_rows("Anthropic/hh-rlhf", data_dir="harmless-base", split="test")
    rows = open_rows("PKU-Alignment/PKU-SafeRLHF", name="alpaca-7b")
    assert rows.where(0) == "PKU-Alignment/PKU-SafeRLHF:row 0"
    assert asked == [
        ("Anthropic/hh-rlhf", {"name": None, "data_dir": "harmless-base", "split": "test"}),
        ("PKU-Alignment/PKU-SafeRLHF", {"name": "alpaca-7b", "data_dir": None, "split": "train"}),
    ]


def test_a_repository_that_holds_a_program_is_read_as_the_hub_converted_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(revision: str | None = None, **options: Any) -> Any:
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found summarize_from_feedback.py")
        return datasets.Dataset.from_list([AXIS])

    asked = stand_in(monkeypatch, load)
    open_rows("openai/summarize_from_feedback", name="axis", split="validation")
    converted = {"data_dir": "axis", "split": "validation", "revision": "refs/convert/parquet"}
    assert asked[1:] == [("openai/summarize_from_feedback", converted)]


def test_the_hubs_no_names_everything_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(**options: Any) -> Any:
        raise ValueError("BuilderConfig 'axe' not found. Available: ['axis']\nand more")

    stand_in(monkeypatch, load)
    told = r"owner/data: no such file or data set \(name 'axe', split 'train'\); looked in .*: BuilderConfig 'axe' not"
    with pytest.raises(InputError, match=told):
        open_rows("owner/data", name="axe")


# --- real files ---------------------------------------------------------------------------------------------


def shared(name: str) -> Path:
    folder = os.environ.get("MODPO_SHARED_DATA")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip("set MODPO_SHARED_DATA to the folder of the real data")
    return Path(folder) / name


def read(name: str, format: str) -> PromptGroups:
    return group_rows(open_rows(shared(name)), format=format)


def test_real_qa_feedback() -> None:
    groups = read("qa_feedback/dev_feedback_400.json", "qa_feedback")
    assert (len(groups), groups.counts["responses"], groups.counts["pairs"]) == (400, 1600, 2086)


def test_real_qa_feedback_preferences_point_the_right_way() -> None:
    """Preferred answers share more words with the expert's; with the coding turned round they would share fewer."""

    def likeness(answer: str, expert: str) -> float:
        a, b = set(answer.lower().split()), set(expert.lower().split())
        return len(a & b) / len(a | b)

    gains = [
        likeness(str(group.responses[chosen]), group.fields["gold"])
        - likeness(str(group.responses[rejected]), group.fields["gold"])
        for group in read("qa_feedback/dev_feedback_400.json", "qa_feedback")
        for chosen, rejected in group.pairs.get("data", ())
    ]
    assert mean(gains) > 0.02


def test_real_qa_feedback_columns_count_every_error() -> None:
    """Against the file's text: an answer has a number below zero exactly if its row names an error of the category."""
    for group in read("qa_feedback/dev_feedback_400.json", "qa_feedback"):
        named = re.findall(r"'error type': '([\w-]+)'", str(group.fields["feedback"]))
        expected = {
            "factuality": any(kind in ("Wrong-Grounding", "Unverifiable") for kind in named),
            "relevance": any(kind in ("Irrelevant", "Redundant", "Incoherent") for kind in named),
            "completeness": any(kind.startswith("Missing") for kind in named),
        }
        assert {name: column[0] < 0 for name, column in group.columns.items()} == expected  # type: ignore[operator]
        assert all(column[1:] == (None,) * (len(group.responses) - 1) for column in group.columns.values())


def test_real_qa_feedback_spans_are_balanced_in_length() -> None:
    groups = read("qa_feedback/dev_feedback_400.json", "qa_feedback_spans")
    lengths: dict[str, list[int]] = {}
    for group in groups:
        words = [len(str(response).split()) for response in group.responses]
        for name, pairs in group.pairs.items():
            lengths.setdefault(name, []).extend(words[chosen] - words[rejected] for chosen, rejected in pairs)
    assert {name: len(found) for name, found in lengths.items()} == {
        "factuality": 100,
        "relevance": 357,
        "completeness": 302,
    }
    assert abs(mean(lengths["factuality"])) < 1  # words, of 59 in the mean
    assert abs(mean(lengths["relevance"])) < 5


def test_real_sharegpt() -> None:
    groups = read("dpo_en_demo/dpo_en_demo.json", "sharegpt")
    assert (groups.counts["rows"], groups.counts["pairs"]) == (300, 295)  # five rows stand there twice
    assert sum(message["role"] == "system" for group in groups for message in group.prompt) == 80  # type: ignore[index]


def test_real_hh_rlhf() -> None:
    groups = read("hh_rlhf/harmless_base_test_2000.jsonl.gz", "hh_rlhf")
    assert (len(groups), groups.counts["rows"], groups.counts["pairs"]) == (1994, 1996, 1996)
    for group in groups:
        roles = [message["role"] for message in group.prompt]  # type: ignore[index]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


# --- a function of the user's -------------------------------------------------------------------------------

FORUM = """
def forum_row(row):
    if row["votes_a"] == row["votes_b"]:
        return None
    pair = [0, 1] if row["votes_a"] > row["votes_b"] else [1, 0]
    return {"prompt": row.pop("question"), "responses": [row["a"], row["b"]], "pairs": [pair]}
"""
FORUM_ROWS = [
    {"question": f"q{i}", "a": f"yes {i}", "b": f"no {i}", "votes_a": votes, "votes_b": 1}
    for i, votes in enumerate([2, 0, 1, 5])
]
WriteModule = Callable[..., str]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriteModule]:
    """Writes the source of a module in the working directory, of a fresh name, and gives that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    written: list[str] = []

    def write(source: str, name: str = "") -> str:
        name = name or f"layouts_{len(written)}"
        (tmp_path / f"{name}.py").write_text(source)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        linecache.clearcache()
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def forum(format: str, rows: list[Row] = FORUM_ROWS, **options: Any) -> PromptGroups:
    return group_rows(rows_from_list(rows, "forum.jsonl"), format=format, **options)


def refusal(format: str) -> str:
    """The one line that is said of a layout."""
    with pytest.raises(InputError) as caught:
        forum(format)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def test_a_function_lays_rows_out_and_leaves_rows_out(write_module: WriteModule) -> None:
    groups = forum(f"{write_module(FORUM)}:forum_row")
    assert [group.prompt for group in groups] == ["q0", "q1", "q3"]
    assert [group.pairs["data"] for group in groups] == [((0, 1),), ((1, 0),), ((0, 1),)]
    assert groups.warnings == ["1 rows left out: they hold nothing to learn from"]
    assert FORUM_ROWS[0]["question"] == "q0"  # the function took it out of its own copy


@pytest.mark.parametrize(
    ("format", "said"),
    [
        (
            "no_such_module:f",
            "cannot import no_such_module: ModuleNotFoundError: .*; fix: run in the folder that holds",
        ),
        ("{}:missing", "has no 'missing'; fix: name a function of that module"),
        ("{}:constant", "is of type int and cannot be called; fix: name a function"),
        ("{}:two", r"cannot be called with one row: .*; fix: define it as f\(row\)"),
        ("{}:later", "is an async function; fix: "),
        ("{}:", "is not of the form package.module:function; fix: write for instance my_layouts:forum_row"),
    ],
)
def test_a_function_that_cannot_be_had_is_refused(write_module: WriteModule, format: str, said: str) -> None:
    source = "constant = 3\ndef two(a, b): ...\nasync def later(row): ...\n"
    assert re.match(rf"forum\.jsonl:format: .*{said}", refusal(format.format(write_module(source))))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return row['answers']", ":format: {} raised KeyError: 'answers'; fix: handle this row in the function"),
        ("return [row]", ":format: {} returned list, not a row; fix: return a dict as in the layout `preference`"),
        ("return {1: 'a'}", ":format: {} returned a row with a field whose name is not text; fix: return a dict"),
        ("return {'prompt': 'p', 'chosen': 3, 'rejected': 'r'}", ":chosen: 3 is neither text nor a list of messages"),
        ("return {'prompt': 'p', 'responses': []}", ":responses: there is none; fix: give at least one"),
    ],
)
def test_what_a_function_does_wrong_names_file_and_row(write_module: WriteModule, body: str, said: str) -> None:
    source = f"def f(row):\n    if row['a'] != 'yes 1':\n        return None\n    {body}\n"
    reference = f"{write_module(source)}:f"
    assert refusal(reference).startswith(f"forum.jsonl:row 1{said.format(reference)}")


def test_a_function_may_give_prompts_alone_where_nothing_is_trained_on_them(write_module: WriteModule) -> None:
    source = "def f(row): return {'prompt': row['question'], 'responses': []}"
    reference = f"{write_module(source)}:f"
    assert len(forum(reference, unanswered=True)) == 4
    with pytest.raises(InputError, match="responses: there is none"):
        group_rows(rows_from_list([{"prompt": "p", "responses": []}]), format="preference", unanswered=True)


def test_the_groups_fingerprint_holds_a_functions_source_and_of_others_the_name(write_module: WriteModule) -> None:
    name = write_module(FORUM)
    before = forum(f"{name}:forum_row").fingerprint
    write_module(FORUM, name)
    assert forum(f"{name}:forum_row").fingerprint == before
    write_module(FORUM + "# edited\n", name)
    assert forum(f"{name}:forum_row").fingerprint != before
    rows = rows_from_list([{"prompt": "p", "chosen": "c", "rejected": "r"}])
    groups = group_rows(rows)
    content = json.dumps([rows.fingerprint, "preference", RULES]).encode() + groups.keys.tobytes()
    assert groups.fingerprint == hashlib.sha256(content).hexdigest()


EXPERIMENT = """
model: {{model_name_or_path: none}}
data: {{path: forum.jsonl, format: "{format}", eval_path: forum.jsonl, eval_format: "{eval_format}", eval_prompts: 1}}
objectives: {{kind: {{pairs: data}}, brief: {{reward: modpo.rewards.text:word_count}}}}
"""


def test_an_experiment_names_functions_for_its_rows(write_module: WriteModule, tmp_path: Path) -> None:
    source = FORUM + "def ask(row): return {'prompt': row['question'], 'responses': []}\n"
    name = write_module(source)
    (tmp_path / "forum.jsonl").write_text("".join(json.dumps(row) + "\n" for row in FORUM_ROWS))
    file = tmp_path / "e.yaml"
    file.write_text(EXPERIMENT.format(format=f"{name}:forum_row", eval_format=f"{name}:ask"))
    train, held_out = load_groups(read_experiment(file))
    assert [group.prompt for group in train] == ["q1", "q3"]
    assert [(group.prompt, group.responses) for group in held_out] == [("q0", ())]
    (tmp_path / "forum.jsonl").unlink()  # the function is looked for before the rows
    file.write_text(EXPERIMENT.format(format="preference", eval_format=f"{name}:ask_them"))
    with pytest.raises(InputError, match=rf"e\.yaml:3:data\.eval_format: {name} has no 'ask_them'; fix: "):
        load_groups(read_experiment(file))


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ("sft: {path: x, format: 'no:f'}", "sft.format"),
        ("sample: {prompts: x, format: 'no:f'}", "sample.format"),
        (
            "objectives: {a: {reward: {train: {kind: reward_model, format: 'no:f'}}}, b: {pairs: data}}",
            "objectives.a.reward.train.format",
        ),
    ],
)
def test_functions_of_later_stages_are_looked_for_first(
    write_module: WriteModule, tmp_path: Path, section: str, field: str
) -> None:
    file = tmp_path / "e.yaml"
    lines = EXPERIMENT.format(format="preference", eval_format="preference").strip().splitlines()
    file.write_text("\n".join([*(line for line in lines if line.split(":")[0] != section.split(":")[0]), section]))
    with pytest.raises(InputError, match=rf"e\.yaml:\d:{re.escape(field)}: cannot import no"):
        check_layouts(read_experiment(file))
