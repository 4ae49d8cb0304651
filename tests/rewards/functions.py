"""Functions that come with the package, loaded as an experiment loads them, and what they are called with."""

from __future__ import annotations

from typing import Any

import pytest

from modpo.base.errors import InputError
from modpo.data.prompt_group import Text
from modpo.rewards.batch import RewardBatch
from modpo.rewards.function import FunctionReward

HI_AGAIN: Text = [{"role": "assistant", "content": "hi"}, {"role": "assistant", "content": "again"}]


def chat(content: str) -> Text:
    return [{"role": "assistant", "content": content}]


def load(name: str, **kwargs: Any) -> FunctionReward:
    return FunctionReward(
        f"modpo.rewards.{name}", kwargs, where="e.yaml:7", name="mine", field="objectives.mine.reward"
    )


def batch_of(responses: list[Text], prompts: list[Text] | None = None, **fields: list[Any]) -> RewardBatch:
    where = [f"rows.jsonl:{n + 1}" for n in range(len(responses))]
    return RewardBatch(prompts or ["p"] * len(responses), responses, {}, fields, where)


def refusal(name: str, **kwargs: Any) -> str:
    """The one line that says why the function cannot be had."""
    with pytest.raises(InputError, match=r"^e\.yaml:7:objectives\.mine\.reward: .*; fix: ") as caught:
        load(name, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)
