"""HelpSteer and HelpSteer2: answers that people rated in five respects.

Wang et al., "HelpSteer: Multi-attribute Helpfulness Dataset for SteerLM", NAACL 2024, arXiv 2311.09528; Wang et al.,
"HelpSteer2: Open-source dataset for training top-performing reward models", NeurIPS 2024, arXiv 2406.08673.
On the Hub: nvidia/HelpSteer, nvidia/HelpSteer2.
"""

from __future__ import annotations

import re

from modpo.data.formats.fields import Fields, chat_row, message
from modpo.data.prompt_group import Message
from modpo.data.rows import Row

RESPECTS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
ROLE_OF = {"User": "user", "Assistant": "assistant"}

_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")


def helpsteer_row(row: Row) -> Row | None:
    """One response, with a column for each respect; the rows of one prompt become one group.

    Columns: `helpfulness`, `correctness`, `coherence`, `complexity`, `verbosity`, from 0 to 4. More is better of the
    first three; the last two describe a style.

    Returns:
        None if the prompt or the response is blank.

    Raises:
        InputError: a field of the layout is missing or of another kind.
    """
    with Fields(row, "helpsteer") as fields:
        prompt, response = fields.text("prompt"), fields.text("response")
        columns = {name: [fields.number(name)] for name in RESPECTS}
    return chat_row(read_turns(prompt), [response], row, ("prompt", "response", *RESPECTS), **columns)


def read_turns(prompt: str) -> list[Message]:
    """The turns of a prompt: the first is the user's, and each one after it says in a line of its own whose it is."""
    first, *parts = _TURN.split(prompt)
    turns = [message(ROLE_OF[speaker], text) for speaker, text in zip(parts[::2], parts[1::2], strict=True)]
    return [message("user", first), *turns]
