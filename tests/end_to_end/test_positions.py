"""A model of few positions: rows and answers that are longer are refused before anything runs, shorter ones train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from modpo.base.errors import InputError
from modpo.cli import main
from modpo.training.config import MODPOConfig
from modpo.training.model_checks import require_readable_rows
from modpo.training.trainer import MODPOTrainer
from tests.kit import SAMPLE, SAMPLED_DATA, errors, preference_rows, prompt_rows, write_experiment, write_rows

POSITIONS = 48  # the rows of `preference_rows` take at most 41 of these tokens, their prompts at most 13
MORLHF = "{num_generations: 2, per_device_train_batch_size: 2, max_steps: 1, max_completion_length: 40}"


def gpt2(vocabulary: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_positions": POSITIONS, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0))


@pytest.fixture
def short_model(tiny_model: Path, tmp_path: Path) -> Path:
    tokenizer, folder = AutoTokenizer.from_pretrained(tiny_model), tmp_path / "gpt2"
    gpt2(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def long_rows() -> list[dict[str, Any]]:
    rows = preference_rows()
    rows[4]["rejected"] += " and so on" * 4
    return rows


def run(command: str, *more: str, file: Path) -> int:
    return main([command, str(file), *more])


COMMANDS = (["inspect"], ["score"], ["sweep"], ["train", "--weights", "kind=0.5,concise=0.5"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_rows_that_are_longer_after_the_cut_are_refused(
    command: list[str], short_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows.jsonl", long_rows())
    file = write_experiment(tmp_path, short_model, data="{path: FOLDER/rows.jsonl, eval_prompts: 3, max_length: 64}")
    assert run(command[0], *command[1:], file=file) == 2
    (line,) = errors(capsys.readouterr().err)
    assert "rows.jsonl:5: takes" in line
    assert "and the model has 48 positions (1 too long); fix: lower `data.max_length` to 48" in line
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("command", ["inspect", "sweep"])
def test_answers_that_could_be_longer_are_refused(
    command: str, short_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    file = write_experiment(tmp_path, short_model, evaluation="{max_new_tokens: 40, bootstrap: 50}")
    assert run(command, file=file) == 2
    (line,) = errors(capsys.readouterr().err)
    assert "evaluation.max_new_tokens: is 40, the prompt of" in line
    assert "and the model has 48 positions; fix: give at most 3" in line
    assert not (tmp_path / "cache").exists()
    assert run(command, "--set", "evaluation.max_new_tokens=34", file=file) == 0


@pytest.mark.parametrize("command", ["sample", "sweep"])
def test_samples_that_could_be_longer_are_refused(
    command: str, short_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "prompts.jsonl", prompt_rows())
    objectives = "{concise: {pairs: drawn, reward: modpo.rewards.text:word_count, maximize: false}}"
    sections = {"objectives": objectives, "sweep": "{weights: [{concise: 1}]}"}
    sample = SAMPLE.replace("max_new_tokens: 8", "max_new_tokens: 40")
    file = write_experiment(tmp_path, short_model, sample=sample, data=SAMPLED_DATA, **sections)
    assert run(command, file=file) == 2
    assert "sample.max_new_tokens: is 40, the prompt of" in errors(capsys.readouterr().err)[0]
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "rows.jsonl").exists()


def test_answers_of_reinforcement_learning_that_could_be_longer_are_refused(
    short_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    objectives = "{concise: {reward: modpo.rewards.text:word_count, maximize: false}}"
    file = write_experiment(
        tmp_path, short_model, objectives=objectives, morlhf=MORLHF, sweep="{method: morlhf, weights: [{concise: 1}]}"
    )
    assert run("sweep", file=file) == 2
    assert "morlhf.max_completion_length: is 40, the prompt of" in errors(capsys.readouterr().err)[0]
    assert not (tmp_path / "cache").exists()


LONG = "{path: FOLDER/rows.jsonl, eval_prompts: 3, max_length: 64}"
STAGES = {
    "sft": {"sft": "{path: FOLDER/long.jsonl, format: preference}"},
    "reward": {
        "objectives": """
  kind: {pairs: data}
  brief: {reward: {train: {kind: reward_model, path: FOLDER/long.jsonl}}}"""
    },
}


@pytest.mark.parametrize("stage", STAGES)
def test_rows_of_the_stages_before_are_refused_before_they_are_trained_on(
    stage: str, short_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    long = preference_rows()
    long[0] = {name: text + " and so on" * 4 for name, text in long[0].items()}
    write_rows(tmp_path / "long.jsonl", long)
    assert run(stage, file=write_experiment(tmp_path, short_model, data=LONG, **STAGES[stage])) == 2
    (line,) = errors(capsys.readouterr().err)
    assert "tokens, and the model has 48 positions" in line
    assert not list((tmp_path / "run").rglob("manifest.json"))


# --- in Python ----------------------------------------------------------------------------------------------


def new_trainer(model: PreTrainedModel, rows: list[dict[str, Any]], tiny_model: Path, folder: Path) -> MODPOTrainer:
    settings = {"output_dir": str(folder / "run"), "cache_dir": str(folder / "cache"), "report_to": "none"}
    return MODPOTrainer(
        model,
        args=MODPOConfig(weights={"quality": 1.0}, max_steps=2, bf16=False, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )


def test_rows_longer_than_the_positions_are_refused_in_python(tiny_model: Path, tmp_path: Path) -> None:
    model = gpt2(300)
    with pytest.raises(InputError, match=r"4: takes .* 48 positions \(1 too long\); fix: lower `max_length` to 48"):
        new_trainer(model, long_rows(), tiny_model, tmp_path)
    assert new_trainer(model, preference_rows(), tiny_model, tmp_path).train().global_step == 2


def test_rows_that_were_scored_with_another_model_are_held_against_this_one(tiny_model: Path, tmp_path: Path) -> None:
    enough, config = gpt2(300), GPT2Config(vocab_size=300, n_positions=24, n_embd=32, n_layer=1, n_head=2)
    scored = new_trainer(enough, preference_rows(), tiny_model, tmp_path).train_dataset
    with pytest.raises(InputError, match=r"train_dataset:row \d+: takes \d+ tokens, and the model has 24 positions"):
        require_readable_rows({"train_dataset": scored}, GPT2LMHeadModel(config))
    with pytest.raises(
        InputError, match=r"train_dataset:row 0: holds the token id \d+, and the model's vocabulary ends at"
    ):
        require_readable_rows({"train_dataset": scored}, gpt2(100))
    require_readable_rows({"train_dataset": scored, "eval_dataset": {"one": scored}}, enough)


def test_token_ids_beyond_the_vocabulary_are_refused_in_python(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"0: holds the token id \d+, and the model's vocabulary ends at 99; fix: take"
    ):
        new_trainer(gpt2(100), preference_rows(), tiny_model, tmp_path)
    assert not list(tmp_path.glob("cache/reference*"))
