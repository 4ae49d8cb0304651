"""QA-Feedback: questions with passages to answer from, four sampled answers, human preferences among them.

Wu et al., "Fine-Grained Human Feedback Gives Better Rewards for Language Model Training", NeurIPS 2023,
arXiv 2306.01693. The files are train_feedback.json and dev_feedback.json in tasks/qa_feedback/data of
github.com/allenai/FineGrainedRLHF.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
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
        choices = _choices(fields)
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


def _choices(fields: Fields) -> list[int]:
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
