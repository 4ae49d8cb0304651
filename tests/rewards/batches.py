"""Texts as a reward gets them."""

from __future__ import annotations

from modpo.data.prompt_group import Text
from modpo.rewards.batch import RewardBatch


def texts(prompts: list[Text], responses: list[Text]) -> RewardBatch:
    where = [f"rows.jsonl:{i + 1}" for i in range(len(prompts))]
    return RewardBatch(prompts, responses, columns={}, fields={}, where=where)
