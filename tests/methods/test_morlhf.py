"""MORLHF on a tiny model: the reward is the weighted sum of what MODPO's margins are, and it rises."""

from __future__ import annotations

import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

from modpo.base.errors import InputError, IntegrityError, NumericError
from modpo.base.interrupts import Interruption
from modpo.cli import main
from modpo.data.loading import load_groups
from modpo.data.tokens import tokenize_prompt
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from modpo.forward.packing_choice import with_packing
from modpo.methods.morlhf import new_trainer, reward_functions, train, training_arguments
from modpo.methods.point import give_base_back
from modpo.methods.run import Run
from modpo.methods.sweep import point_folder, run_sweep, train_point
from modpo.models.folders import save_policy
from modpo.models.reference import ReferenceModel
from modpo.scored.of_experiment import experiment_scorer
from modpo.training.checkpoints import Checkpoints
from tests.kit import CHAT_TEMPLATE, manifest_of, write_experiment, write_rows


def letters(completions: list[str], **kwargs: object) -> list[float]:
    """The share of an answer's characters that stand before n: about half of what an untrained model writes."""
    return [sum(c < "n" for c in text) / max(1, len(text)) for text in completions]


def length(completions: list[str], **kwargs: object) -> list[float]:
    return [float(len(text)) for text in completions]


def broken(completions: list[str], **kwargs: object) -> list[float]:
    """A number for what the data says, and none for new answers."""
    return [float(len(text)) if text[:2] in ("ye", "no") else math.nan for text in completions]


@pytest.fixture
def experiment_file(tmp_path: Path, tiny_model: Path) -> Path:
    rows = [{"prompt": f"{i}: go? ", "chosen": f"yes {i}", "rejected": f"no, never {i}"} for i in range(10)]
    write_rows(tmp_path / "rows.jsonl", rows)
    return write_experiment(
        tmp_path,
        tiny_model,
        data="{path: FOLDER/rows.jsonl, eval_prompts: 2, max_length: 64}",
        objectives=f"""
  letters: {{pairs: data, reward: "{__name__}:letters", scale: 4}}
  short: {{reward: "{__name__}:length", maximize: false, calibration: standardise}}""",
        training="{beta: 0.05, logging_steps: 1}",
        morlhf="{max_steps: 4, per_device_train_batch_size: 8, learning_rate: 1e-2, max_completion_length: 8}",
        sweep="{method: morlhf, grid: 2}",
    )


def read(path: Path, *overrides: str) -> Experiment:
    return read_experiment(path, list(overrides))


def log_of(folder: Path) -> list[dict[str, float]]:
    return [entry for entry in json.loads((folder / "training_log.json").read_text()) if "reward" in entry]


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def run_of(experiment: Experiment) -> Run:
    """As a sweep makes it."""
    prompts, _ = load_groups(experiment)
    reference = ReferenceModel(experiment.model, experiment.cache_dir)
    experiment = with_packing(experiment, reference)
    scorer = experiment_scorer(experiment, reference)
    return Run(experiment, scorer.score(prompts), reference, prompts, scorer.rewards)


def test_a_point_is_an_adapter_with_its_cost_and_its_log(experiment_file: Path) -> None:
    experiment = read(experiment_file)
    weights = experiment.sweep.weights[0]
    folder = train_point(experiment, weights)
    manifest = manifest_of(folder)
    assert (manifest["weights"], manifest["beta"]) == (weights, 0.05)
    cost = manifest["cost"]
    assert cost["seconds"] > 0
    assert 4 * 8 <= cost["tokens_generated"] <= 4 * 8 * 8
    assert cost["tokens"] > cost["tokens_generated"] - 4 * 8  # an answer's last token is predicted, and not read
    trained = weights_of(folder)
    assert any(tensor.abs().max() > 0 for name, tensor in trained.items() if "lora_B" in name)
    assert all(tensor.isfinite().all() for tensor in trained.values())
    log = log_of(folder)
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    for entry in log:
        parts = {name: entry[f"rewards/{name}/mean"] for name in weights}
        assert entry["reward"] == pytest.approx(sum(weights[name] * parts[name] for name in weights), rel=1e-4)


def test_rewards_are_the_margins_of_modpo(experiment_file: Path) -> None:
    """By hand: scale, direction, and the mean and deviation that were fitted on answers of the reference."""
    experiment = read(experiment_file)
    run = run_of(experiment)
    fitted = run.scored.calibrations["short"]
    assert fitted.method == "standardise"
    answers = ["  abc ", "xyz", "ax"]
    expected = {
        "letters": [4 * share for share in (1.0, 0.0, 0.5)],
        "short": [-(size - fitted.center) * fitted.factor for size in (3, 3, 2)],
    }
    tokenizer = run.reference.tokenizer
    ids = [[*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for answer in answers]
    functions = reward_functions(run, {"letters": 0.25, "short": 0.75})
    assert [function.__name__ for function in functions] == ["letters", "short"]
    for function in functions:
        given = function(completion_ids=ids, completions=["?"] * 3, prompt_index=[0, 1, 2], prompts=["?"] * 3)
        assert given == pytest.approx(expected[function.__name__])
    (alone,) = reward_functions(run, {"letters": 0.0, "short": 1.0})
    assert alone.__name__ == "short"
    arguments = training_arguments(experiment, {"letters": 0.0, "short": 1.0}, Path("work"))
    assert arguments.reward_weights == [1.0]


def test_the_reward_rises_and_beta_holds_the_policy_back(experiment_file: Path) -> None:
    end = {"letters": 1.0, "short": 0.0}
    steps = ["morlhf.max_steps=25", "morlhf.learning_rate=2e-2"]
    more = [*steps, "morlhf.per_device_train_batch_size=16", "morlhf.num_generations=8"]
    free = log_of(train_point(read(experiment_file, *more), end, experiment_file.parent / "free"))
    held = log_of(train_point(read(experiment_file, *more, "training.beta=4"), end, experiment_file.parent / "held"))

    def mean(entries: list[dict[str, float]], name: str) -> float:
        return float(np.mean([entry[name] for entry in entries]))

    assert mean(free[:3], "reward") < 2.5  # of 4
    assert mean(free[-3:], "reward") > 3.5
    assert mean(held[-3:], "reward") < 2.5
    assert mean(held[-5:], "kl") < mean(free[-5:], "kl") / 2


def test_a_second_run_is_kept_and_other_settings_are_refused(experiment_file: Path) -> None:
    experiment = read(experiment_file, "sweep={method: morlhf, weights: [{letters: 1}]}", "morlhf.max_steps=1")
    assert run_sweep(experiment) == []
    folder = point_folder(experiment, experiment.sweep.weights[0])
    before = (folder / "manifest.json").read_bytes()
    assert run_sweep(experiment) == []
    assert (folder / "manifest.json").read_bytes() == before
    with pytest.raises(IntegrityError, match="fix: "):
        run_sweep(replace(experiment, morlhf=replace(experiment.morlhf, max_steps=2)))


def test_a_killed_run_ends_with_the_same_bits(experiment_file: Path) -> None:
    experiment = read(experiment_file)
    run, weights = run_of(experiment), experiment.sweep.weights[0]
    whole = experiment_file.parent / "whole"
    train(run, weights, whole)

    work, stop = experiment_file.parent / ".work-halves", Interruption()
    checkpoints = Checkpoints(work, {}, every=1, keep=1)
    stop.note(signal.SIGTERM)
    trainer = new_trainer(run, weights, work)
    assert not trainer.train_resumably(checkpoints, stop, "halves")  # one step, and a checkpoint
    give_base_back(trainer, run.reference)
    trainer = new_trainer(run, weights, work)
    assert trainer.train_resumably(checkpoints, Interruption(), "halves")
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    timed = {"step_time"}
    assert [{k: v for k, v in e.items() if k not in timed} for e in log] == [
        {k: v for k, v in e.items() if k not in timed} for e in log_of(whole)
    ]
    save_policy(trainer.model, experiment_file.parent / "halves")
    assert {n: t.tolist() for n, t in weights_of(experiment_file.parent / "halves").items()} == {
        n: t.tolist() for n, t in weights_of(whole).items()
    }
    cost = manifest_of(whole)["cost"]
    counted = cost.keys() - {"seconds", "peak_memory_bytes"}
    assert {name: getattr(trainer.cost, name) for name in counted} == {name: cost[name] for name in counted}


def test_rlhf_is_morlhf_at_the_unit_vectors(experiment_file: Path) -> None:
    experiment = read(experiment_file, "sweep={method: rlhf}", "morlhf.max_steps=1")
    assert experiment.sweep.weights == [{"letters": 1.0, "short": 0.0}, {"letters": 0.0, "short": 1.0}]
    assert run_sweep(experiment) == []
    for weights, name in zip(experiment.sweep.weights, ("letters", "short"), strict=True):
        (entry,) = log_of(point_folder(experiment, weights))
        assert [key for key in entry if key.startswith("rewards/") and key.endswith("mean")] == [f"rewards/{name}/mean"]


def test_all_weights_can_be_trained(experiment_file: Path) -> None:
    experiment = read(experiment_file, "lora=null", "morlhf.max_steps=3", "morlhf.learning_rate=1e-3")
    folder = train_point(experiment, experiment.sweep.weights[0])
    assert (folder / "model.safetensors").is_file()
    assert log_of(folder)[-1]["kl"] != 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objectives.letters.reward=null", "objectives.letters: cannot score new answers"),
        ("objectives.letters.reward={column: score}", "objectives.letters: cannot score new answers"),
        ("morlhf.arguments={temperature: 0.7}", "temperature: is 0.7, and must stay 1.0"),
        ("morlhf.arguments={normalize_advantages: true}", "normalize_advantages: is True"),
        ("morlhf.arguments={beta: 0.5}", "beta: has a place of its own; fix: set `training.beta` instead"),
        ("morlhf.arguments={learning_speed: 1}", "learning_speed: is no field of RLOOConfig"),
        ("morlhf={algorithm: grpo, arguments: {scale_rewards: group}}", "scale_rewards: is 'group'"),
        ("morlhf={num_generations: 3, per_device_train_batch_size: 8}", "morlhf.arguments: "),
    ],
)
def test_what_would_not_be_morlhf_is_refused_before_a_model_is_read(
    experiment_file: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert main(["sweep", str(experiment_file), "--set", override]) == 2
    assert message in capsys.readouterr().err
    assert not (experiment_file.parent / "run").exists()


def test_too_few_prompts_for_a_step(experiment_file: Path) -> None:
    experiment = read(experiment_file, "morlhf.per_device_train_batch_size=64")
    with pytest.raises(InputError, match="a step takes 16 prompts, and there are 8"):
        train_point(experiment, experiment.sweep.weights[0])


def test_a_reward_that_is_not_finite_ends_the_point(experiment_file: Path) -> None:
    experiment = read(experiment_file, f"objectives.short.reward={__name__}:broken", "objectives.short.scale=1")
    with pytest.raises(NumericError, match="short: nan is not finite"):
        train_point(experiment, {"letters": 0.5, "short": 0.5})


def test_prompts_are_answered_as_they_are_measured(
    experiment_file: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variables of the chat template, each row's own before those of the file."""
    text = experiment_file.read_text().replace(":letters", ":length").replace(", calibration: standardise", "")
    experiment_file.write_text(text.replace("max_length: 64}", "max_length: 64, chat_template_kwargs: {brief: true}}"))
    rows = []
    for i in range(10):
        answers = ([{"role": "assistant", "content": text}] * n for n, text in ((1, f"yes {i}"), (2, "no")))
        row = dict(zip(("chosen", "rejected"), answers, strict=True), prompt=[{"role": "user", "content": f"{i}?"}])
        rows.append({**row, "chat_template_kwargs": {"brief": False} if i % 2 else None})
    write_rows(experiment_file.parent / "rows.jsonl", rows)
    model = experiment_file.parent / "model"
    shutil.copytree(tiny_model, model)
    (model / "chat_template.jinja").write_text("{% if brief %}Be brief.{% endif %}" + CHAT_TEMPLATE)
    run = run_of(read(experiment_file, "morlhf.max_steps=8", f"model.model_name_or_path={model}"))
    trainer = new_trainer(run, {"letters": 0.5, "short": 0.5}, experiment_file.parent / "work")
    answered: list[list[int]] = []
    single = trainer._generate_single_turn

    def listening(ids: list[list[int]], *more: Any) -> Any:
        answered.extend(ids)
        return single(ids, *more)

    monkeypatch.setattr(trainer, "_generate_single_turn", listening)
    trainer.train()
    given = {tuple(tokenize_prompt(g.prompt, run.reference.tokenizer, g.template_kwargs)) for g in run.prompts}
    texts = {trainer._tokenizer.decode(ids).startswith("Be brief.") for ids in answered}
    assert {tuple(ids) for ids in answered} <= given
    assert texts == {True, False}
