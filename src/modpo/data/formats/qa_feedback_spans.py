"""QA-Feedback's error spans as pairs that differ in little but one kind of error, to train reward models on.

Of the first answer, whose erroneous spans people marked, two versions are made. The chosen one lacks k sentences that
hold an error of a category; the rejected one lacks k sentences that hold no error, and so still holds those errors.
Both lost the same number of sentences, of about the same length, so that neither length nor style tells them apart.
The data set is that of `modpo.data.formats.qa_feedback`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice, product

from modpo.data.formats.fields import Fields, unused
from modpo.data.formats.qa_feedback import (
    CATEGORIES,
    USED,
    AnswerFeedback,
    qa_prompt,
    read_answer_feedback,
    read_passages,
)
from modpo.data.rows import Row

MOST_ALTERNATIVES = 3  # pairs of one category that are made of one answer
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


def qa_feedback_spans_row(row: Row) -> Row | None:
    """Versions of the first answer, and pairs among them.

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
