"""The harness for TRL's tests, on tests of our own in their shape: one for each way in which a test can end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tools.trl_suite.__main__ import main

TESTS = """
from datasets import load_dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

ROWS = "trl-internal-testing/zen"
MODEL = "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5"


class TestTrainer:
    def test_trains(self, tmp_path):
        rows = load_dataset(ROWS, "standard_preference", split="train")
        args = DPOConfig(output_dir=str(tmp_path), max_steps=1, report_to="none")
        trainer = DPOTrainer(model=MODEL, args=args, train_dataset=rows)
        trainer.train()
        assert trainer.state.log_history[-1]["train_loss"] > 0

    def test_refused(self, tmp_path):
        DPOConfig(output_dir=str(tmp_path), loss_type="ipo", report_to="none")

    def test_of_trl_alone(self):
        assert DPOTrainer.__module__.startswith("trl.")

    def test_that_takes_long(self):
        while True:
            pass


class TestVLM:
    def test_vlm(self):
        raise AssertionError("not selected")

    def test_vision_dataset_with_text_model_raises(self):
        assert load_dataset("trl-internal-testing/zen-image", "conversational_preference")["train"][0]["images"]
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "test_dpo_trainer.py").write_text(TESTS)
    return folder


def test_the_table_says_how_each_test_ended(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "ends.json"
    assert main(["--tests", str(checkout), "--output", str(output), "--only", "not long"]) == 0
    ends = json.loads(output.read_text())
    found = {end["test"]: end for end in ends["modpo"]}
    assert {end["test"]: end["outcome"] for end in ends["trl"]} == {
        "test_trains": "passed",
        "test_refused": "passed",
        "test_of_trl_alone": "passed",
        "test_vision_dataset_with_text_model_raises": "passed",
    }
    assert found["test_trains"]["outcome"] == "passed"
    assert found["test_refused"]["clear"]
    assert found["test_refused"]["line"].startswith("InputError: MODPOConfig:loss_type: is ['ipo']; fix: ")
    assert not found["test_of_trl_alone"]["clear"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [
        "of 4 that pass with TRL, 2 pass with MODPOTrainer",
        "of the 2 others, 1 end in a line that says what to do",
    ]


def test_a_test_that_takes_long_is_stopped(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = checkout / "test_dpo_trainer.py"
    assert main(["--tests", str(file), "--trainers", "trl", "--only", "takes_long", "--seconds", "1"]) == 0
    assert "TimeoutError: took more than 1 seconds" in capsys.readouterr().out
