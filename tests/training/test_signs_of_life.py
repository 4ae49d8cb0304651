"""A training in a program of a user's: a log is not silent within a long step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from modpo.base import heartbeat
from modpo.base.heartbeat import HEARTBEAT
from modpo.training.arguments import run_training
from modpo.training.config import MODPOConfig
from modpo.training.trainer import MODPOTrainer
from tests.training.runs import preference_rows

SECONDS = 0.2


class Slow(TrainerCallback):
    """Steps that take three times as long as may pass without a line; the second one fails."""

    def on_step_begin(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
        time.sleep(3 * SECONDS)
        if state.global_step:
            raise RuntimeError("no")


@pytest.mark.parametrize("tells", [True, False])
def test_a_long_step_is_not_silent_and_a_failed_one_is(tells, tiny_model: Path, tmp_path, plain_descent, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(heartbeat, "SECONDS_BETWEEN_LINES", SECONDS)
    monkeypatch.setattr(HEARTBEAT, "_write", lambda line, stream: said.append(line) or HEARTBEAT.heard())
    folders = {"output_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
    config = MODPOConfig(**(plain_descent | folders | {"max_steps": 3, "disable_tqdm": not tells}))
    trainer = MODPOTrainer(str(tiny_model), args=config, train_dataset=preference_rows(), callbacks=[Slow()])
    said.clear()
    with pytest.raises(RuntimeError, match="no"):
        trainer.train()
    steps = [line for line in said if line.startswith("training: ")]
    assert any(line.startswith("training: 0 of 3 steps") for line in steps) == tells
    assert any(line.startswith("training: 1 of 3 steps") for line in steps) == tells
    assert not any("took" in line for line in steps)
    said.clear()
    time.sleep(3 * SECONDS)
    assert said == []
    assert not any(type(callback).__name__ == "_BetweenSteps" for callback in trainer.callback_handler.callbacks)


def test_a_stage_that_fails_in_training_leaves_nothing_running(tiny_model: Path, tmp_path, plain_descent):
    folders = {"output_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
    config = MODPOConfig(**(plain_descent | folders | {"max_steps": 3, "disable_tqdm": True}))
    trainer = MODPOTrainer(str(tiny_model), args=config, train_dataset=preference_rows(), callbacks=[Slow()])
    with pytest.raises(RuntimeError, match="no"):
        run_training(trainer, "sft")
    assert HEARTBEAT.running == []
