"""What the parts are told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Setting:
    """How a part is to run.

    Attributes:
        work: a folder for its files.
        small: sizes for a CPU.
        model: folder of a model to use in place of the embedded one; "": none was given.
    """

    work: str
    small: bool
    model: str = ""

    def as_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Setting:
        return cls(**json.loads(text))
