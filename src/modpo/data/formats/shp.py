"""SHP, Stanford Human Preferences: two comments below a Reddit post, of which readers liked one better.

Ethayarajh et al., "Understanding Dataset Difficulty with V-Usable Information", ICML 2022, arXiv 2110.08420.
On the Hub: stanfordnlp/SHP. The comment with the higher score was written later, so that it does not owe its score
to having been there for longer.
"""

from __future__ import annotations

import re

from modpo.data.formats.fields import Fields, chat_row
from modpo.data.rows import Row

PREFERS_A = 1  # of `labels`; 0 where the readers prefer B

_OF_THE_PAIR = re.compile(r".*_[AB]$|history$|labels$|seconds_difference$|score_ratio$")


def shp_row(row: Row) -> Row | None:
    """Two comments and a pair; rows of one post become one group.

    Columns: `score`, a comment's upvotes less its downvotes.

    Returns:
        None if the post or a comment is blank.

    Raises:
        InputError: a field of the layout is missing or of another kind.
    """
    with Fields(row, "shp") as fields:
        prompt = fields.text("history")
        responses = [fields.text(f"human_ref_{side}") for side in "AB"]
        label = fields.choice("labels", (0, 1))
        score = [fields.number(f"score_{side}") for side in "AB"]
    pair = [0, 1] if label == PREFERS_A else [1, 0]
    return chat_row(prompt, responses, row, list(filter(_OF_THE_PAIR.match, row)), pairs=[pair], score=score)
