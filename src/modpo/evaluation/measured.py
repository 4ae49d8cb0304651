"""A policy's numbers on the held-out prompts, as they are kept.

<folder>/responses.jsonl, agreement.json, log_ratios.json and a manifest
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
    agreement: dict[str, list[float]]  # (N,) of each objective that cannot score new text, see `agreement`
    log_ratios: list[list[float]]  # log pi - log pi_ref of the answers that are audited, by prompt; nats
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
            _write(measure(), new.folder)
        manifest = new.about
    lines = (artifact.folder / RESPONSES).read_text("utf-8").split("\n")  # splitlines() would split inside of answers
    agreement, log_ratios = (
        json.loads((artifact.folder / name).read_text("utf-8")) for name in (AGREEMENT, LOG_RATIOS)
    )
    return Measured([json.loads(line) for line in lines if line], agreement, log_ratios, cost_of(manifest))


def _write(measured: Measured, folder: Path) -> None:
    lines = [json.dumps(answer, ensure_ascii=False, allow_nan=False) for answer in measured.answers]
    (folder / RESPONSES).write_text("\n".join(lines) + "\n", "utf-8")
    (folder / AGREEMENT).write_text(json.dumps(measured.agreement), "utf-8")
    (folder / LOG_RATIOS).write_text(json.dumps(measured.log_ratios), "utf-8")
