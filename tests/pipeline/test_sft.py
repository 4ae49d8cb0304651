"""A policy from demonstrations, on a tiny model: what it learns, what is kept, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from modpo.base.errors import InputError, IntegrityError, NumericError
from modpo.data.groups import group_rows
from modpo.data.sources import open_rows
from modpo.data.tokens import tokenize_prompt
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment, SftSection
from modpo.forward.logprobs import padded_logps
from modpo.models.reference import ReferenceModel
from modpo.pipeline.demonstrations import load_demonstrations, read_demonstrations
from modpo.pipeline.sft import train_sft
from tests.kit import manifest_of, times
from tests.pipeline.staged import ANSWER, USER, write_demonstrations


def demonstrated_logps(folder: Path, experiment: Experiment) -> list[float]:
    """log pi of each demonstration's answer, in nats: the slow way, one text at a time."""
    reference = ReferenceModel(replace(experiment.model, model_name_or_path=str(folder)), experiment.cache_dir)
    logps = []
    for row in read_demonstrations(open_rows(experiment.sft.path if experiment.sft else "")):
        prompt = tokenize_prompt(row["prompt"], reference.tokenizer)
        answer = [*reference.tokenizer(row["completion"])["input_ids"], reference.tokenizer.eos_token_id]
        with torch.no_grad():
            logps.append(float(padded_logps(reference.model, [prompt], [[answer]])[0]))
    return logps


@pytest.mark.parametrize("adapters", [True, False])
def test_sft_learns_the_demonstrations(experiment: Experiment, tiny_model: Path, adapters: bool) -> None:
    if not adapters:
        sft = replace(experiment.sft, arguments={**experiment.sft.arguments, "learning_rate": 1e-3})
        experiment = replace(experiment, lora=None, sft=sft)
    folder = train_sft(experiment)
    assert folder == experiment.output_dir / "sft"
    assert not (folder / "adapter_config.json").exists()
    before, after = demonstrated_logps(tiny_model, experiment), demonstrated_logps(folder, experiment)
    assert np.mean(after) > np.mean(before) + 5
    manifest = manifest_of(folder)
    assert manifest["demonstrations"] == 6
    assert manifest["cost"]["tokens"] > 0
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32


def test_held_out_loss_is_that_of_the_saved_model(experiment: Experiment) -> None:
    """Nats per token of the two held-out demonstrations, which fit one batch, by hand."""
    folder = train_sft(experiment)
    held_out = load_demonstrations(experiment.sft, never=group_rows(open_rows(experiment.data.path)), seed=0).held_out
    assert len(held_out) == 2
    every = read_demonstrations(open_rows(experiment.sft.path))
    logps = demonstrated_logps(folder, experiment)
    chosen = [every.index(row) for row in held_out]
    tokens = sum(len(str(every[i]["completion"])) + 1 for i in chosen)  # a byte is a token, and the end is one
    expected = -sum(logps[i] for i in chosen) / tokens
    assert manifest_of(folder)["held_out_loss"] == pytest.approx(expected, rel=1e-3)


def test_sft_is_kept_and_other_settings_are_refused(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train_sft(experiment)
    before = times(folder)
    capsys.readouterr()
    train_sft(experiment)
    assert "sft: finished before, kept" in capsys.readouterr().err
    assert times(folder) == before
    with pytest.raises(IntegrityError, match="was made from other data or settings; fix: delete it"):
        train_sft(replace(experiment, seed=1))
    write_demonstrations(Path(experiment.sft.path), 9)
    with pytest.raises(IntegrityError, match="was made from other data or settings"):
        train_sft(experiment)
    assert times(folder) == before
    assert not [path for path in experiment.output_dir.iterdir() if path.name.startswith((".tmp", ".work"))]


def test_sft_of_the_answers_that_people_preferred(experiment: Experiment) -> None:
    section = SftSection(experiment.data.path, format="preference", arguments={"max_steps": 1})
    folder = train_sft(replace(experiment, sft=section))
    # `good ...` is preferred for kindness and brevity, but for the prompts that disagree: there each is rejected once.
    learned, _ = group_rows(open_rows(experiment.data.path)).split_held_out(4, 0)
    agreed = [group for group in learned if int(str(group.prompt).split(":")[0]) % 4 != 3]
    assert 0 < len(agreed) < len(learned)
    assert manifest_of(folder)["demonstrations"] == len(agreed)


def test_sft_on_conversations_in_half_precision(experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": [USER, ANSWER, USER, ANSWER]}) + "\n" for _ in range(4)))
    section = SftSection(str(path), arguments={"max_steps": 1})
    model = replace(experiment.model, dtype="bfloat16")
    folder = train_sft(replace(experiment, sft=section, model=model))
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"learning_rat": 1}, "sft.arguments.learning_rat: is no field of SFTConfig; fix: "),
        ({"seed": 3}, "sft.arguments.seed: has a place of its own; fix: set `seed` instead"),
        ({"lr_scheduler_type": "steep"}, "sft.arguments: steep is not a valid SchedulerType"),
    ],
)
def test_bad_sft_arguments_are_one_line(experiment_file: Path, arguments: dict[str, Any], said: str) -> None:
    experiment = read_experiment(experiment_file, ["model.model_name_or_path=nowhere/to/be/found"])
    with pytest.raises(InputError) as caught:
        train_sft(replace(experiment, sft=replace(experiment.sft, arguments=arguments)))
    assert f"{experiment_file}:" in str(caught.value)
    assert said in str(caught.value)
    assert not experiment.output_dir.exists()


def test_a_loss_that_is_not_finite_leaves_nothing(experiment: Experiment) -> None:
    section = replace(experiment.sft, arguments={"learning_rate": 1e30, "max_grad_norm": 0.0})
    with pytest.raises(NumericError, match="not finite"):
        train_sft(replace(experiment, sft=section))
    assert not (experiment.output_dir / "sft").exists()


def test_a_folder_of_something_else_is_not_replaced(experiment: Experiment) -> None:
    folder = experiment.output_dir / "sft"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something that modpo did not make"):
        train_sft(experiment)
    assert (folder / "thesis.txt").read_text() == "years of work"
