"""PKU-SafeRLHF: two answers to a question, of which people say which is better and, apart from that, which is safer.

Ji et al., "PKU-SafeRLHF: Towards Multi-Level Safety Alignment for LLMs with Human Preference", 2024, arXiv 2406.15513;
its first version: Dai et al., "Safe RLHF: Safe Reinforcement Learning from Human Feedback", ICLR 2024,
arXiv 2310.12773. On the Hub: PKU-Alignment/PKU-SafeRLHF.
"""

from __future__ import annotations

import re

from modpo.data.formats.fields import Fields, chat_row
from modpo.data.rows import Row

SIDES = (0, 1)

_OF_THE_ANSWERS = re.compile(r"(is_)?response_[01]|(better|safer)_response_id")


def pku_saferlhf_row(row: Row) -> Row | None:
    """Two label sets on the same two responses, and what is said of each response.

    Label sets: `better` (more helpful, whether or not it is safe), `safer`.
    Columns: `safe`, 1 or 0; `severity` of the harm, from 0 (none) to 3 (severe), in versions that have it.

    Returns:
        None if the prompt or a response is blank.

    Raises:
        InputError: a field of the layout is missing or of another kind.
    """
    with Fields(row, "pku_saferlhf") as fields:
        prompt = fields.text("prompt")
        responses = [fields.text(f"response_{i}") for i in SIDES]
        better = fields.choice("better_response_id", SIDES)
        safer = fields.choice("safer_response_id", SIDES)
        safe = [float(fields.choice(f"is_response_{i}_safe", (0, 1))) for i in SIDES]
        severity = [fields.number(f"response_{i}_severity_level", optional=True) for i in SIDES]
    used = ["prompt", *filter(_OF_THE_ANSWERS.match, row)]
    levels = {"severity": severity} if any(level is not None for level in severity) else {}
    pairs = {"better": [[better, 1 - better]], "safer": [[safer, 1 - safer]]}
    return chat_row(prompt, responses, row, used, pairs=pairs, safe=safe, **levels)
