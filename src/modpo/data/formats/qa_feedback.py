"""QA-Feedback: questions with passages to answer from, four sampled answers, human preferences among them.

Wu et al., "Fine-Grained Human Feedback Gives Better Rewards for Language Model Training", NeurIPS 2023,
arXiv 2306.01693. The files are train_feedback.json and dev_feedback.json in tasks/qa_feedback/data of
github.com/allenai/FineGrainedRLHF. They are laid out in two ways: `qa_feedback_row` takes the preferences,
`qa_feedback_spans_row` makes pairs of the spans that people marked in the first answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice, product
from typing import Any

from modpo.data.formats.fields import Fields, unused
from modpo.data.rows import Row

ANSWERS = [f"prediction {i}" for i in (1, 2, 3, 4)]
COMPARED = list(combinations(range(4), 2))  # the order of `preference`: (1,2) (1,3) (1,4) (2,3) (2,4) (3,4)
TIE, FIRST, SECOND = 0, 1, 2  # the coding of `preference`, as the data's README gives it
USED = ("question", "passages", "preference", *ANSWERS)

CATEGORY_OF = {
    "Wrong-Grounding": "factuality",
    "Unverifiable": "factuality",
    "Irrelevant": "relevance",
    "Redundant": "relevance",
    "Incoherent": "relevance",
}
CATEGORIES = tuple(dict.fromkeys(CATEGORY_OF.values()))

MOST_ALTERNATIVES = 3  # pairs of one category from one answer
MOST_CONSIDERED = 2_000  # choices of sentences that are compared by length

# What ends in a period and ends no sentence, though a capital letter or a digit follows.
_NO_END = re.compile(
    r"Mr|Mrs|Ms|Dr|Prof|Gen|Col|Lt|Sgt|Capt|Gov|Sen|Rep|Rev|Jr|Sr|"
    r"St|Mt|Ft|No|Nos|Vol|vs|v|ca|c|approx|feat|ft|e\.g|i\.e|"
    r"[A-Z](\.[A-Z])*"  # a person's initials
)

_BREAK = re.compile(r"""[.!?]["'”’)\]]*\s+(?=["'“‘(\[]*[A-Z0-9])""")
_LAST_WORD = re.compile(r"([\w.]+)\.[^\w.]*$")

TextPair = tuple[str, str]  # chosen, rejected


def qa_feedback_row(row: Row) -> Row:
    """Prompt, four answers, a pair for each of the six comparisons that is no tie, and numbers for the first answer.

    Columns, None for the answers that people did not mark; more is better: `factuality` and `relevance`, minus the
    share of the answer's characters that lie in errors of that category; `completeness`, minus how many pieces of
    information are missing. `gold` and `feedback` are kept as fields.

    Raises:
        InputError: a field of the layout is missing or of another kind.
    """
    with Fields(row, "qa_feedback") as fields:
        question, passages = fields.text("question"), read_passages(fields)
        answers = [fields.text(name) for name in ANSWERS]
        choices = _preferences(fields)
        feedback = read_answer_feedback(fields, answers[0]) if fields.has("feedback") else None
    pairs = [
        [a, b] if choice == FIRST else [b, a] for (a, b), choice in zip(COMPARED, choices, strict=True) if choice != TIE
    ]
    return {
        "prompt": qa_prompt(question, passages),
        "responses": [answer.strip() for answer in answers],
        "pairs": pairs,
        **(_columns(feedback, answers[0]) if feedback else {}),
        "question": question,
        **unused(row, USED),
    }


def qa_prompt(question: str, passages: list[list[str]]) -> str:
    """Question, passages, and a cue that ends in a line break, so that no token spans it and an answer."""
    parts = [f"Question: {question.strip()}"]
    for title, *sentences in passages:
        parts.append(f"Passage: {title}\n{_body(title, sentences)}")
    return "\n\n".join([*parts, "Answer:\n"])


def read_passages(fields: Fields) -> list[list[str]]:
    """Each passage as its title and its sentences."""
    passages = fields.items("passages")
    if not all(_is_passage(passage) for passage in passages):
        fields.report("passages", "is not a list of [title, sentence, ...]")
    return passages


def _preferences(fields: Fields) -> list[int]:
    choices = fields.items("preference")
    if len(choices) != len(COMPARED) or any(choice not in (TIE, FIRST, SECOND) for choice in choices):
        fields.report("preference", f"{choices!r:.60} is not six times 0, 1 or 2")
    return choices


def _columns(feedback: AnswerFeedback, answer: str) -> Row:
    """One number for the first answer, None for the other three, by category."""
    marked = {category: _covered(feedback, category) / max(len(answer), 1) for category in CATEGORIES}
    numbers = {**marked, "completeness": float(feedback.missing)}
    return {name: [0.0 - number, None, None, None] for name, number in numbers.items()}


def _covered(feedback: AnswerFeedback, category: str) -> int:
    """How many characters lie in the category's errors, those in several of them once."""
    return len({i for span in feedback.errors if span.category == category for i in range(span.start, span.end)})


def _is_passage(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(text, str) for text in given)


def _body(title: str, sentences: list[str]) -> str:
    """The sentences in one paragraph, without the title that many passages repeat at their beginning."""
    return " ".join(" ".join(sentences).removeprefix(title).split())


# --- what people marked in the first answer -----------------------------------------------------------------


@dataclass(frozen=True)
class ErrorSpan:
    """An erroneous piece of an answer: its characters from `start` up to, not including, `end`."""

    category: str  # factuality | relevance
    start: int
    end: int
    repeats: str  # what a redundant span repeats, as it stands in the answer; else ""


@dataclass(frozen=True)
class AnswerFeedback:
    """What people marked in one answer."""

    errors: list[ErrorSpan]
    missing: int  # pieces of information that the passages hold and the answer lacks
    corrected: str  # the answer with its errors mended and what is missing added; "" if there is none


def read_answer_feedback(fields: Fields, answer: str) -> AnswerFeedback:
    """The `feedback` of a row.

    Args:
        answer: what the spans refer to, as the row gives it.
    """
    feedback = fields.inside("feedback")
    return AnswerFeedback(
        [_error_span(error, answer) for error in feedback.each("errors")],
        len(feedback.items("missing-info")),
        feedback.text("corrected-prediction", optional=True),
    )


def _error_span(fields: Fields, answer: str) -> ErrorSpan:
    kind = fields.text("error type")
    if kind not in CATEGORY_OF:
        fields.report("error type", f"{kind!r:.60} is none of {', '.join(CATEGORY_OF)}")
    start, end = fields.number("start") or 0, fields.number("end") or 0
    if answer and not 0 <= start < end <= len(answer):
        fields.report("end", f"characters {start:g} to {end:g} are no span of an answer of {len(answer)} characters")
    repeats = fields.text("explanation", optional=True).strip() if kind == "Redundant" else ""
    return ErrorSpan(CATEGORY_OF.get(kind, ""), int(start), int(end), repeats)


# --- error spans as pairs -----------------------------------------------------------------------------------


def qa_feedback_spans_row(row: Row) -> Row | None:
    """Pairs that differ in little but one kind of error, to train reward models on.

    Of the first answer, whose erroneous spans people marked, two versions are made. The chosen one lacks k sentences
    that hold an error of a category; the rejected one lacks k sentences that hold no error, and so still holds those
    errors. Both lost the same number of sentences, of about the same length, so that neither length nor style tells
    them apart.

    Label sets: `factuality` and `relevance`, made by leaving out sentences as `balanced_pairs` says; `completeness`,
    the corrected answer over the first one, where information was missing.

    Returns:
        None if there is no pair.

    Raises:
        InputError: a field of the layout is missing or of another kind.
    """
    with Fields(row, "qa_feedback_spans") as fields:
        question, passages = fields.text("question"), read_passages(fields)
        answer = fields.text("prediction 1")
        feedback = read_answer_feedback(fields, answer)
    found = {category: balanced_pairs(answer, feedback, category) for category in CATEGORIES}
    found["completeness"] = _completeness(answer, feedback)
    responses = list(dict.fromkeys(text for pairs in found.values() for pair in pairs for text in pair))
    if not responses:
        return None
    place = {text: i for i, text in enumerate(responses)}
    return {
        "prompt": qa_prompt(question, passages),
        "responses": responses,
        "pairs": {name: [[place[a], place[b]] for a, b in pairs] for name, pairs in found.items() if pairs},
        "question": question,
        **unused(row, (*USED, "feedback")),
    }


def balanced_pairs(answer: str, feedback: AnswerFeedback, category: str) -> list[TextPair]:
    """Up to three pairs whose chosen version lacks k faulty sentences, and the rejected one k sound ones.

    A sentence is faulty if one of the category's spans covers more than half of it, or lies in it by more than half.
    It is sound if no span of any category touches it, and no redundant span repeats it: without what it repeats, a
    span would be redundant no longer. k is the number of faulty sentences, or of sound ones where these are fewer; the
    choices whose removed sentences are the most alike in length are taken.

    Returns:
        Distinct pairs of two different texts, the best balanced first; none if no sentence is faulty or none is sound.
    """
    sentences = split_sentences(answer)
    faulty = [sentence for sentence in sentences if _is_faulty(sentence, feedback, category)]
    sound = [sentence for sentence in sentences if _is_sound(sentence, feedback)]
    k = min(len(faulty), len(sound))
    if k == 0:
        return []
    choices = product(_choices(faulty, k), _choices(sound, k))
    ranked = sorted(choices, key=lambda choice: abs(_length(choice[0]) - _length(choice[1])))
    pairs = ((_without(sentences, faults), _without(sentences, others)) for faults, others in ranked)
    distinct = dict.fromkeys(pair for pair in pairs if pair[0] != pair[1])
    return list(distinct)[:MOST_ALTERNATIVES]


def _choices(sentences: list[Sentence], k: int) -> Iterator[tuple[Sentence, ...]]:
    """k of the sentences, in every way, up to a number of ways that no real answer reaches."""
    return islice(combinations(sentences, k), MOST_CONSIDERED)


def _is_faulty(sentence: Sentence, feedback: AnswerFeedback, category: str) -> bool:
    for span in feedback.errors:
        shared = min(sentence.end, span.end) - max(sentence.start, span.start)
        shorter = min(sentence.end - sentence.start, span.end - span.start)
        if span.category == category and shared > shorter / 2:
            return True
    return False


def _is_sound(sentence: Sentence, feedback: AnswerFeedback) -> bool:
    touched = any(span.start < sentence.end and sentence.start < span.end for span in feedback.errors)
    repeated = (span.repeats for span in feedback.errors if span.repeats)
    return not touched and not any(text in sentence.text or sentence.text in text for text in repeated)


def _length(sentences: tuple[Sentence, ...]) -> int:
    return sum(len(sentence.text) for sentence in sentences)


def _without(sentences: list[Sentence], removed: tuple[Sentence, ...]) -> str:
    return " ".join(sentence.text for sentence in sentences if sentence not in removed)


def _completeness(answer: str, feedback: AnswerFeedback) -> list[TextPair]:
    chosen, rejected = feedback.corrected.strip(), answer.strip()
    differ = bool(chosen) and bool(rejected) and chosen != rejected
    return [(chosen, rejected)] if feedback.missing and differ else []


# --- English text into sentences ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Sentence:
    """The characters of a text from `start` up to, not including, `end`; no white space around them."""

    text: str
    start: int
    end: int


def split_sentences(text: str) -> list[Sentence]:
    """The sentences of a text, in order; an abbreviation or a person's initial ends none."""
    breaks = [match.end() for match in _BREAK.finditer(text) if not _is_abbreviated(text[: match.end()])]
    found = []
    for begin, end in zip([0, *breaks], [*breaks, len(text)], strict=True):
        words = text[begin:end].strip()
        if words:
            start = text.index(words, begin)
            found.append(Sentence(words, start, start + len(words)))
    return found


def _is_abbreviated(text: str) -> bool:
    """Whether the text's last period belongs to its last word."""
    last = _LAST_WORD.search(text)
    return last is not None and _NO_END.fullmatch(last[1]) is not None
