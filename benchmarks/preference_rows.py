"""Preference rows for the benchmarks: real ones from a folder, or made ones of the same shape.

The folder holds `dev_feedback.json`, of tasks/qa_feedback/data in github.com/allenai/FineGrainedRLHF, and
`harmless-base/test.jsonl.gz`, of the data set Anthropic/hh-rlhf on the Hub. The first rows of each are read.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from modpo.data.groups import PromptGroups, group_rows
from modpo.data.prompt_group import UNNAMED, plain_text
from modpo.data.rows import Rows, rows_from_list
from modpo.data.sources import open_rows

Row = dict[str, Any]

QA_ROWS, HH_ROWS = 400, 2000  # read of the files
# Words and pairs a prompt, as counted in the real data (QA-Feedback's dev questions, hh-rlhf harmless-base test).
QA_PROMPT_WORDS, QA_ANSWER_WORDS, QA_PAIRS = 620, 75, 5
HH_PROMPT_WORDS, HH_ANSWER_WORDS = 75, 45
VOCABULARY = ("the", "a", "of", "to", "and", "in", "is", "was", "for", "that", "river", "music", "year", "city", "book")


def qa_rows(data: Path | None, prompts: int) -> list[Row]:
    """Long prompts with four answers and several pairs each: QA-Feedback's shape, prompts of average length."""
    if data is None:
        return _made_qa(prompts)
    groups = group_rows(_first(QA_ROWS, data / "dev_feedback.json"), format="qa_feedback")
    usual = [g for g in groups if len(g.pairs.get(UNNAMED, ())) == QA_PAIRS]
    middle = sorted(usual, key=_length)[len(usual) // 2 - prompts // 2 :][:prompts]
    return [row for group in middle for row in _pair_rows(group)]


def single_pair_rows(data: Path | None, pairs: int) -> list[Row]:
    """Short prompts with one pair each: hh-rlhf's shape."""
    if data is None:
        return _made_pairs(pairs)
    groups = group_rows(_first(HH_ROWS, data / "harmless-base" / "test.jsonl.gz"), format="hh_rlhf")
    groups = [group for group in groups if group.pairs]
    chosen = [groups[i] for i in random.Random(0).sample(range(len(groups)), pairs)]
    return [row for group in chosen for row in _pair_rows(group)][:pairs]


def _first(count: int, file: Path) -> Rows:
    rows = open_rows(str(file))
    return rows_from_list([rows[i] for i in range(min(count, len(rows)))], file.name)


def _length(group: Any) -> int:
    return sum(len(plain_text(text)) for text in (group.prompt, *group.responses))


def _pair_rows(group: Any) -> list[Row]:
    return [
        {"prompt": group.prompt, "chosen": group.responses[chosen], "rejected": group.responses[rejected]}
        for chosen, rejected in group.pairs[UNNAMED]
    ]


def _words(rng: random.Random, mean: float) -> str:
    """Text of random length around `mean` words, spread as in the real data (log-normal)."""
    count = max(1, round(mean * rng.lognormvariate(-0.18, 0.6)))
    return " ".join(rng.choices(VOCABULARY, k=count))


def _made_qa(prompts: int) -> list[Row]:
    rng = random.Random(0)
    rows = []
    for _ in range(prompts):
        prompt = " ".join(rng.choices(VOCABULARY, k=QA_PROMPT_WORDS)) + "\nanswer:"
        answers = [" " + " ".join(rng.choices(VOCABULARY, k=QA_ANSWER_WORDS)) for _ in range(4)]
        pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)][:QA_PAIRS]
        rows += [{"prompt": prompt, "chosen": answers[a], "rejected": answers[b]} for a, b in pairs]
    return rows


def _made_pairs(pairs: int) -> list[Row]:
    rng = random.Random(0)
    return [
        {
            "prompt": _words(rng, HH_PROMPT_WORDS) + "\nanswer:",
            "chosen": " " + _words(rng, HH_ANSWER_WORDS),
            "rejected": " " + _words(rng, HH_ANSWER_WORDS),
        }
        for _ in range(pairs)
    ]


def groups_of(rows: list[Row]) -> PromptGroups:
    """The rows as prompt groups."""
    return group_rows(rows_from_list(rows))
