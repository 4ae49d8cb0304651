"""BeaverTails: questions and answers, of each of which people say whether it is safe.

Ji et al., "BeaverTails: Towards Improved Safety Alignment of LLM via a Human-Preference Dataset", NeurIPS 2023,
arXiv 2307.04657. On the Hub: PKU-Alignment/BeaverTails, in the splits 30k_train, 30k_test, 330k_train and 330k_test;
in the large ones several people judge one answer. Its preferences are PKU-SafeRLHF's. The prompts of
PKU-Alignment/BeaverTails-Evaluation are read by the format `prompts`.
"""

from __future__ import annotations

from modpo.data.formats.fields import Fields, chat_row
from modpo.data.rows import Row

USED = ("prompt", "response", "category", "is_safe")


def beavertails_row(row: Row) -> Row | None:
    """One response, with the column `safe`, 1 or 0; the rows of one prompt become one group.

    Returns:
        None if the prompt or the response is blank.

    Raises:
        InputError: a field of the layout is missing or of another kind.
    """
    with Fields(row, "beavertails") as fields:
        prompt, response = fields.text("prompt"), fields.text("response")
        safe = float(fields.choice("is_safe", (0, 1)))
    return chat_row(prompt, [response], row, USED, safe=[safe])
