"""How often a reward orders held-out pairs as people did, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from modpo.data.groups import group_rows
from modpo.data.rows import rows_from_list
from modpo.rewards.accuracy import held_out_accuracy
from modpo.rewards.batch import RewardBatch


class Fixed:
    """A reward whose numbers are known."""

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = list(scores)
        self.identity: dict[str, Any] = {}
        self.scores_new_text = True

    def __call__(self, batch: RewardBatch) -> list[float]:
        return self.scores[: len(batch)]

    def release(self) -> None: ...


def test_held_out_accuracy_by_hand() -> None:
    """Prompt 1: a win and a loss; prompt 2: a tie. Wins 1 of 2 and 0.5 of 1: 1.5 of 3; both prompts are as the mean."""
    rows = [
        {"prompt": "1 ", "responses": ["a", "b", "c"], "pairs": [[0, 1], [2, 0]]},
        {"prompt": "2 ", "responses": ["a", "b"], "pairs": [[1, 0]]},
    ]
    groups = group_rows(rows_from_list(rows))
    found = held_out_accuracy(Fixed([2.0, 1.0, 0.0, 5.0, 5.0]), groups, "data")
    assert found == {"accuracy": 0.5, "se": 0.0, "pairs": 3, "prompts": 2}
    # Now prompt 2 is a win: 2 of 3; off by -1/3 and 1/3, so se = sqrt(2/1 * 2/9) / 3 = 2/9.
    found = held_out_accuracy(Fixed([2.0, 1.0, 0.0, 4.0, 5.0]), groups, "data")
    assert found == pytest.approx({"accuracy": 2 / 3, "se": 2 / 9, "pairs": 3, "prompts": 2})
