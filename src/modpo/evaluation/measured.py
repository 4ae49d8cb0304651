"""A policy's numbers on the held-out prompts, as they are kept.

<folder>/responses.jsonl, agreement.json, log_ratios.json and a manifest
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modpo.base.artifact import Artifact, cost_of
from modpo.base.costs import Cost

RESPONSES = "responses.jsonl"
AGREEMENT = "agreement.json"
LOG_RATIOS = "log_ratios.json"


@dataclass(frozen=True)
class Measured:
    """A policy's numbers on N prompts."""

    answers: list[dict[str, Any]]  # the lines of responses.jsonl
    agreement: dict[str, list[float]] = field(
        default_factory=dict
    )  # (N,) of each objective that cannot score new text, see `agreement`
    log_ratios: list[list[float]] = field(
        default_factory=list
    )  # log pi - log pi_ref of the answers that are audited, by prompt; nats
    cost: Cost | None = None  # of measuring; None where an older version did not write it down

    def scores(self, objective: str) -> np.ndarray:
        """Mean reward of a prompt's answers, or its agreement, (N,)."""
        if objective in self.agreement:
            return np.array(self.agreement[objective])
        return self._per_prompt([answer["rewards"][objective] for answer in self.answers])

    def numbers(self, key: str) -> np.ndarray:
        """Mean `kl` (nats) or `tokens` of a prompt's answers, (N,)."""
        return self._per_prompt([answer[key] for answer in self.answers])

    def _per_prompt(self, values: Sequence[float]) -> np.ndarray:
        by_prompt: dict[int, list[float]] = {}
        for answer, value in zip(self.answers, values, strict=True):
            by_prompt.setdefault(answer["prompt_index"], []).append(value)
        return np.array([np.mean(by_prompt[i]) for i in sorted(by_prompt)])


def read_or_measure(artifact: Artifact, measure: Callable[[], Measured]) -> Measured:
    """The numbers that are kept under the artifact's key, measured first where they are not."""
    manifest = artifact.there()
    if manifest is None:
        with artifact.making() as new:
            measured = measure()
            (new.folder / RESPONSES).write_text(json_lines(measured.answers), "utf-8")
            (new.folder / AGREEMENT).write_text(json.dumps(measured.agreement), "utf-8")
            (new.folder / LOG_RATIOS).write_text(json.dumps(measured.log_ratios), "utf-8")
        manifest = new.about
    lines = (artifact.folder / RESPONSES).read_text("utf-8").split("\n")  # splitlines() would split inside of answers
    agreement, log_ratios = (json.loads((artifact.folder / f).read_text("utf-8")) for f in (AGREEMENT, LOG_RATIOS))
    return Measured([json.loads(line) for line in lines if line], agreement, log_ratios, cost_of(manifest))


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """The text of a JSONL file. NaN and infinity are refused: no other program reads them."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
