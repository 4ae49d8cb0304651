"""The reward functions that come with the package: against numbers by hand, their library, or a slow oracle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from modpo.base.errors import EnvironmentFault
from modpo.data.prompt_group import Text
from modpo.rewards import text
from modpo.rewards.text import (
    character_count,
    grade_level,
    is_json,
    match_count,
    matches,
    reading_ease,
    token_count,
    vader_compound,
    word_count,
)
from tests.rewards.functions import HI_AGAIN, batch_of, chat, load, refusal

# Length


def test_word_and_character_counts() -> None:
    assert word_count(["p"] * 3, ["one two three", " \n ", "  a  b\n"], score=[1, 2, 3]) == [3.0, 0.0, 2.0]
    assert character_count(["p"] * 2, ["", "né e"]) == [0.0, 4.0]


def test_conversations_count_as_their_contents_joined_by_a_line_break() -> None:
    """ "hi" and "again": 2 words; 2 + 1 + 5 characters."""
    assert word_count(["p"], [HI_AGAIN]) == [2.0]
    assert character_count(["p"], [HI_AGAIN]) == [8.0]


def test_token_count_of_a_byte_tokenizer_is_the_bytes(tiny_model: Path) -> None:
    """é is two bytes in UTF-8; an end-of-text token that is spelled out is one token."""
    texts: list[Text] = ["", "né e", "a<eos>", HI_AGAIN]
    assert token_count(["p"] * 4, texts, tokenizer=str(tiny_model)) == [0.0, 5.0, 2.0, 8.0]
    assert token_count([], [], tokenizer=str(tiny_model)) == []


def test_token_count_leaves_out_what_a_tokenizer_adds(tiny_encoder: Path) -> None:
    """[CLS] and [SEP] are put around a text, one token a letter."""
    from transformers import AutoTokenizer

    assert len(AutoTokenizer.from_pretrained(tiny_encoder)("ab c")["input_ids"]) == 5
    assert token_count(["p"], ["ab c"], tokenizer=str(tiny_encoder)) == [3.0]


def test_token_count_is_identified_by_the_tokenizer_not_its_folder(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    copy, other = tmp_path / "copy", tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(copy)
    tokenizer.add_tokens(["ab"])
    tokenizer.save_pretrained(other)
    identities = [load("text:token_count", tokenizer=str(f)).identity for f in (tiny_model, copy, other)]
    assert identities[0] == identities[1] == json.loads(json.dumps(identities[1]))
    assert identities[0] != identities[2]
    assert str(tmp_path) not in json.dumps(identities)
    assert set(identities[0]["distributions"]) >= {"transformers", "tokenizers", "modpo"}


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({}, "modpo.rewards.text:token_count needs the argument 'tokenizer'; fix: give it in `kwargs`"),
        ({"tokenizer": "no/such/folder"}, "no tokenizer can be read from 'no/such/folder'"),
        ({"tokenizer": ["a"]}, "`tokenizer` is ['a'], not text"),
    ],
)
def test_refused_tokenizers(kwargs: dict[str, Any], said: str) -> None:
    assert said in refusal("text:token_count", **kwargs)


# Sentiment and readability


def test_vader_is_the_lexicons_own_compound_score() -> None:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    texts = ["I love this wonderful place!", "It was a terrible, sad day.", "The box is on the table.", ""]
    oracle = SentimentIntensityAnalyzer()
    scores = vader_compound(["p"] * 4, texts)
    assert scores == [oracle.polarity_scores(text)["compound"] for text in texts]
    assert scores[0] > 0.5 > -0.5 > scores[1]
    assert scores[2:] == [0.0, 0.0]
    assert vader_compound(["p"] * 4, [chat(text) for text in texts]) == scores


SIMPLE = "The cat sat on the mat. The dog ran to the red house."  # 13 words of one syllable in 2 sentences
HARD = "The university published an important economic analysis."  # 1+5+2+1+3+4+4 syllables in 7 words


def test_reading_ease_by_hand() -> None:
    """206.835 - 1.015 * 13/2 - 84.6 * 13/13, and 206.835 - 1.015 * 7 - 84.6 * 20/7."""
    scores = reading_ease(["p"] * 3, [SIMPLE, HARD, chat(SIMPLE)])
    assert scores == pytest.approx([115.6375, -41.98428571, 115.6375])


def test_grade_level_by_hand() -> None:
    """0.39 * 13/2 + 11.8 * 13/13 - 15.59, and 0.39 * 7 + 11.8 * 20/7 - 15.59."""
    scores = grade_level(["p"] * 3, [SIMPLE, HARD, chat(SIMPLE)])
    assert scores == pytest.approx([-1.255, 20.85428571, -1.255])


@pytest.mark.parametrize("function", [reading_ease, grade_level])
@pytest.mark.parametrize("empty", ["", " \n", "...", "?! -"])
def test_readability_of_no_words_is_nothing_to_gain(function: Any, empty: str) -> None:
    assert function(["p"], [empty]) == [0.0]


def test_readability_is_that_of_english_whatever_others_set() -> None:
    import textstat

    before = reading_ease(["p"], [HARD])
    textstat.set_lang("de")
    try:
        assert reading_ease(["p"], [HARD + " "]) == before
    finally:
        textstat.set_lang("en_US")


@pytest.mark.parametrize(
    ("name", "library", "extra", "cached"),
    [
        ("text:vader_compound", "vaderSentiment.vaderSentiment", "quickstart", text._vader),
        ("text:reading_ease", "textstat.textstat", "readability", text._textstat),
        ("text:grade_level", "textstat.textstat", "readability", text._textstat),
    ],
)
def test_an_extra_that_is_not_installed_is_one_line(
    name: str, library: str, extra: str, cached: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EnvironmentFault, match=rf"^[^\n]*fix: pip install 'modpo\[{extra}\]'$"):
        load(name)(batch_of(["one two"]))


# Format


def test_matches_by_hand() -> None:
    texts: list[Text] = ["Answer: 42", "no", "42", chat("answer: 7")]
    assert matches(["p"] * 4, texts, pattern=r"\d+") == [1.0, 0.0, 1.0, 1.0]
    assert matches(["p"] * 4, texts, pattern=r"\d+", full=True) == [0.0, 0.0, 1.0, 0.0]
    assert matches(["p"] * 4, texts, pattern=r"(?i)^answer: \d+$") == [1.0, 0.0, 0.0, 1.0]
    assert match_count(["p"] * 4, texts, pattern=r"\d") == [2.0, 0.0, 2.0, 1.0]
    assert match_count(["p"], ["aaaa"], pattern="aa") == [2.0]


@pytest.mark.parametrize("name", ["text:matches", "text:match_count"])
@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"pattern": "(unclosed"}, "'(unclosed' is not a regular expression: missing ), unterminated subpattern"),
        ({"pattern": 42}, "`pattern` is 42, not text; fix: put it in quotes"),
        ({}, "needs the argument 'pattern'"),
    ],
)
def test_refused_patterns(name: str, kwargs: dict[str, Any], said: str) -> None:
    assert said in refusal(name, **kwargs)


def test_settings_come_from_the_experiment_never_from_the_data() -> None:
    """Rows with fields `pattern` and `full`: neither says what is looked for."""
    batch = batch_of(["a1", "b"], full=[True, True], pattern=["x", "x"])
    assert load("text:matches", pattern=r"\d")(batch) == [1.0, 0.0]


def test_identity_of_a_pattern_is_the_pattern() -> None:
    reward = load("text:matches", pattern=r"\d")
    assert reward.identity["kwargs"] == {"pattern": r"\d", "full": False}
    assert load("text:matches", pattern=r"\d", full=False).identity == reward.identity
    assert load("text:matches", pattern=r"\d", full=True).identity != reward.identity


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('{"a": [1, 2.5e3, null, "é"]}', 1.0),
        (" [] \n", 1.0),
        ('"text"', 1.0),
        ("9" * 5000, 1.0),  # Python itself would refuse to convert it
        ("", 0.0),
        ("{'a': 1}", 0.0),
        ('{"a": 1,}', 0.0),
        ('{"a": 1} and more', 0.0),
        ('```json\n{"a": 1}\n```', 0.0),
        ("NaN", 0.0),
        ("[-Infinity]", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_is_json(written: str, expected: float) -> None:
    assert is_json(["p"] * 2, [written, chat(written)]) == [expected] * 2
