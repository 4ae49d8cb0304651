"""Rows of every format, with values of any kind and as damaged files; texts into tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modpo.data.formats import FORMATS
from modpo.data.groups import PromptGroups, group_rows
from modpo.data.prompt_group import PromptGroup
from modpo.data.rows import Rows, rows_from_list
from modpo.data.sources import open_rows
from modpo.data.tokens import tokenize_group, tokenize_prompt
from tests.fuzz.cases import fuzz, survives
from tests.fuzz.good_rows import GOOD_ROWS
from tests.fuzz.mutations import altered, json_values, mutated

KEYS = sorted({key for rows in GOOD_ROWS.values() for row in rows for key in row})
REQUIRED = {"preference": ("score",)}  # columns that every response must have


def read(rows: Rows, format: str) -> PromptGroups:
    """Everything that is read of rows before training."""
    groups = group_rows(rows, format=format, columns=REQUIRED.get(format, ()))
    assert sum(len(group.responses) for group in groups) == groups.counts["responses"]
    assert sum(groups.label_sets.values()) == groups.counts["pairs"]
    assert groups.fingerprint
    return groups


def test_the_good_rows_are_good() -> None:
    assert GOOD_ROWS.keys() == FORMATS.keys()
    for format, rows in GOOD_ROWS.items():
        assert len(group_rows(rows_from_list(rows), format=format)) > 0


@pytest.mark.parametrize("format", FORMATS)
@fuzz
@given(data=st.data())
def test_other_values(format: str, data: st.DataObject) -> None:
    groups = survives(read, rows_from_list(data.draw(altered(GOOD_ROWS[format]).filter(_is_list))), format)
    if groups is not None:
        survives(groups.split_held_out, 1, seed=0)


@pytest.mark.parametrize("format", FORMATS)
@fuzz
@given(rows=st.lists(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=8), min_size=1, max_size=3))
def test_any_values(format: str, rows: list[dict[str, Any]]) -> None:
    survives(read, rows_from_list(rows), format)


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@fuzz
@given(data=st.data(), format=st.sampled_from(sorted(FORMATS)))
def test_damaged_files(suffix: str, data: st.DataObject, format: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = GOOD_ROWS[format]
    good = json.dumps(rows, indent=1) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path_factory.getbasetemp() / f"rows{suffix}"
    path.write_bytes(data.draw(mutated(good.encode())))
    survives(lambda: read(open_rows(path), format))


@fuzz
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".jsonl", ".json", ".jsonl.gz", ".parquet"]))
def test_any_bytes(content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / f"bytes{suffix}"
    path.write_bytes(content)
    survives(lambda: read(open_rows(path), "preference"))


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20) | st.sampled_from(
    ["<eos>", "<turn>a", " <eos> "]
)


@fuzz
@given(
    prompt=texts,
    responses=st.lists(texts, min_size=1, max_size=3),
    chat=st.booleans(),
    max_length=st.integers(-1, 40),
    max_prompt_length=st.none() | st.integers(-1, 40),
)
def test_any_text_into_tokens(
    tiny_model: Path,
    prompt: str,
    responses: list[str],
    chat: bool,
    max_length: int,
    max_prompt_length: int | None,
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    group = PromptGroup(prompt, tuple(responses), where="rows:1")
    if chat:
        answers = tuple([{"role": "assistant", "content": text}] for text in responses)
        group = PromptGroup([{"role": "user", "content": prompt}], answers, where="rows:1")
    lengths = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    made = survives(tokenize_group, group, tokenizer, **lengths)
    survives(tokenize_prompt, group.prompt, tokenizer)
    if made is not None:
        assert all(made.responses_ids)
        assert all(len(made.prompt_ids) + len(ids) <= max_length for ids in made.responses_ids)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)
