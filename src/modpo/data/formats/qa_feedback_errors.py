"""What people marked in the first answer of a QA-Feedback row: erroneous spans, missing information, a correction."""

from __future__ import annotations

from dataclasses import dataclass

from modpo.data.formats.fields import Fields

CATEGORY_OF = {
    "Wrong-Grounding": "factuality",
    "Unverifiable": "factuality",
    "Irrelevant": "relevance",
    "Redundant": "relevance",
    "Incoherent": "relevance",
}
CATEGORIES = tuple(dict.fromkeys(CATEGORY_OF.values()))


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
