"""A training that is stopped or killed at any step, and started again, ends with the bits of an undisturbed one."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback, TrainerState
from transformers.trainer_pt_utils import safe_globals

from modpo.base.errors import InputError, IntegrityError, NumericError
from modpo.base.files import read_manifest
from modpo.base.interrupts import Interrupted, Interruption
from modpo.cli import main
from modpo.data.groups import PromptGroups
from modpo.data.loading import load_groups
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from modpo.methods.modpo import new_trainer
from modpo.methods.point import give_base_back
from modpo.methods.run import Run
from modpo.methods.sweep import point_folder, run_sweep, train_point
from modpo.models.reference import ReferenceModel
from modpo.scored.data import ScoredData
from modpo.scored.of_experiment import experiment_scorer
from modpo.training.checkpoints import WEIGHTS, Checkpoints, trained_tensors
from modpo.training.trainer import MODPOTrainer
from tests.kit import WORDS, flip_a_bit, write_experiment, write_rows

POINT = "kind0.5-concise0.5"
WEIGHTS_OPTION = ["--weights", "kind=0.5,concise=0.5"]
STEPS, STEPS_IN_EPOCH = 24, 6


def write_training(folder: Path, model: Path) -> Path:
    """14 prompts, of which 3 are held out.

    11 prompts in batches of one, two batches a step but for the last of an epoch; dropout; a log out of step with both.
    """
    rows = []
    for i in range(14):
        word = WORDS[i % 7]
        answers = {"chosen": f"good {word}" + " and more" * (i % 3), "rejected": f"bad {word}" + " and less" * (i % 2)}
        rows.append({"prompt": f"{i}: the {word}? ", **answers})
    write_rows(folder / "rows.jsonl", rows)
    return write_experiment(
        folder,
        model,
        lora="{r: 4, lora_dropout: 0.3}",
        objectives="""
  kind: {pairs: data}
  concise: {reward: modpo.rewards.text:word_count, maximize: false, scale: 0.5}""",
        training="""
  per_device_train_batch_size: 1
  gradient_accumulation_steps: 2
  learning_rate: 1e-2
  weight_decay: 0.1
  num_train_epochs: 4
  logging_steps: 5
  save_steps: 5
  arguments: {disable_dropout: false}""",
        sweep="{weights: [{kind: 0.5, concise: 0.5}]}",
        evaluation="{max_new_tokens: 4, bootstrap: 10}",
    )


@dataclass
class End:
    """What a training comes to: everything that the next step would depend on."""

    finished: bool
    steps: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    log: list[dict[str, float]]
    cost: dict[str, float]


@dataclass
class Bench:
    """An experiment, scored once, whose one point is trained into folders of its own."""

    experiment: Experiment
    scored: ScoredData
    reference: ReferenceModel
    prompts: PromptGroups

    def trainer(self, work: Path) -> MODPOTrainer:
        (weights,) = self.experiment.sweep.weights
        return new_trainer(Run(self.experiment, self.scored, self.reference, self.prompts, {}), weights, work)

    def train(self, work: Path, *, every: int, keep: int = 2, stop: bool = False, **run: Any) -> End:
        """Train to the end, or `stop` after one more step."""
        interruption = Interruption()
        if stop:
            interruption.note(signal.SIGTERM)
        trainer = self.trainer(work)
        try:
            finished = trainer.train_resumably(Checkpoints(work, run, every=every, keep=keep), interruption, "test")
            log = [{k: v for k, v in entry.items() if "loss" in entry} for entry in trainer.state.log_history]
            weights = {name: tensor.clone() for name, tensor in trained_tensors(trainer.model).items()}
            states = trainer.optimizer.state_dict(), trainer.lr_scheduler.state_dict()
            cost = trainer.cost.written()
            return End(finished, trainer.state.global_step, weights, *states, [e for e in log if e], cost)
        finally:
            give_base_back(trainer, self.reference)


def make_bench(folder: Path, model: Path, overrides: list[str]) -> Bench:
    experiment = read_experiment(write_training(folder, model), overrides)
    reference = ReferenceModel(experiment.model, experiment.cache_dir)
    prompts, _ = load_groups(experiment)
    return Bench(experiment, experiment_scorer(experiment, reference).score(prompts), reference, prompts)


@pytest.fixture(scope="module", autouse=True)
def quick_collection() -> Iterator[None]:
    """Each training begins with a garbage collection: let it not look at the libraries."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def bench(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("bench"), tiny_model, [])


@pytest.fixture(scope="module")
def undisturbed(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[End, Path]:
    """The end of a training that nothing disturbs, and its folder with a checkpoint of every step but the last."""
    work = tmp_path_factory.mktemp("undisturbed")
    return bench.train(work, every=1, keep=STEPS), work


@pytest.fixture
def experiment_file(tmp_path: Path, tiny_model: Path) -> Path:
    return write_training(tmp_path, tiny_model)


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets a fault of `modpo.base.fault_points`, from now on."""

    def set_fault(text: str) -> None:
        monkeypatch.setattr("modpo.base.fault_points._reached", Counter())
        monkeypatch.setenv("MODPO_FAULT", text)

    return set_fault


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the bit, whatever it is made of."""
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    elif hasattr(a, "tolist"):
        assert a.tolist() == b.tolist(), where
    else:
        assert a == b, where


def assert_same_end(a: End, b: End) -> None:
    """All but seconds and memory."""
    for name in ("finished", "steps", "weights", "optimizer", "schedule"):
        assert_same(getattr(a, name), getattr(b, name), name)
    assert a.log == b.log
    assert timeless(a.cost) == timeless(b.cost)


def timeless(cost: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the machine: tokens and passes, those before a checkpoint included."""
    return {name: number for name, number in cost.items() if name not in ("seconds", "peak_memory_bytes")}


def contents(checkpoint: Path) -> dict[str, Any]:
    """Everything in a checkpoint but times, and whether training was to stop there."""
    with safe_globals():
        pickled = {name: torch.load(checkpoint / name, weights_only=True) for name in PICKLED}
    texts = {name: json.loads((checkpoint / name).read_text()) for name in ("progress.json", "trainer_state.json")}
    texts["progress.json"] = timeless(texts["progress.json"])
    del texts["trainer_state.json"]["stateful_callbacks"]
    return {WEIGHTS: load_file(checkpoint / WEIGHTS), **pickled, **texts}


PICKLED = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def checkpoints(work: Path) -> list[int]:
    """Steps of the checkpoints in a folder that verify; there are no others, and no leftovers."""
    found = sorted(work.iterdir()) if work.is_dir() else []
    assert all(read_manifest(folder) is not None for folder in found)
    return sorted(int(folder.name.removeprefix("checkpoint-")) for folder in found)


# --- to the same bits -----------------------------------------------------------------------------------------


def test_stopped_after_every_step(bench: Bench, undisturbed: tuple[End, Path], tmp_path: Path) -> None:
    """24 trainings of a step each, over four epochs: each checkpoint, and the end, is that of the one training."""
    end, saved = undisturbed
    assert (end.finished, end.steps) == (True, STEPS)
    work = tmp_path / "work"
    for step in range(1, STEPS + 1):
        stopped = bench.train(work, every=1000, stop=True)
        assert (stopped.finished, stopped.steps) == (step == STEPS, step)
        if step < STEPS:
            assert checkpoints(work) == [s for s in (step - 1, step) if s]
            assert_same(contents(work / f"checkpoint-{step}"), contents(saved / f"checkpoint-{step}"), f"step {step}")
    assert_same_end(stopped, end)


@pytest.mark.parametrize("step", [1, STEPS_IN_EPOCH, STEPS_IN_EPOCH + 1, STEPS - 1])
def test_from_a_step_to_the_end(bench: Bench, undisturbed: tuple[End, Path], tmp_path: Path, step: int) -> None:
    """In the middle of an epoch and between two, by transformers' own loop over what is left."""
    end, saved = undisturbed
    shutil.copytree(saved / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    assert_same_end(bench.train(tmp_path, every=0), end)


def test_dropout_and_order_are_drawn_anew_each_epoch(undisturbed: tuple[End, Path]) -> None:
    """What the tests above could not show if nothing was random: random numbers are used, and the log sees it."""
    end, saved = undisturbed
    states = [contents(saved / f"checkpoint-{step}")["rng_state.pth"]["cpu"] for step in (1, 2, 7)]
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])
    assert len({entry["loss"] for entry in end.log}) == len(end.log)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.dtype=bfloat16"],
        ["lora=null", "training.learning_rate=1e-3"],
        ["lora.modules_to_save=[lm_head]", "training.arguments={disable_dropout: false, optim: adamw_torch_fused}"],
        ["training.gradient_checkpointing=true", "training.lr_scheduler_type=constant", "training.packing=false"],
    ],
    ids=["float32 adapters over a bfloat16 base", "all weights", "a module trained whole", "checkpointed layers"],
)
def test_whatever_is_trained(tiny_model: Path, tmp_path: Path, overrides: list[str]) -> None:
    bench = make_bench(tmp_path, tiny_model, [*overrides, "training.max_steps=7"])
    end = bench.train(tmp_path / "whole", every=0)
    assert not (tmp_path / "whole").exists() or checkpoints(tmp_path / "whole") == []
    trained = {tensor.dtype for tensor in end.weights.values()}
    assert trained == {torch.float32}
    for _ in range(2):
        bench.train(tmp_path / "work", every=4, stop=True)
    assert checkpoints(tmp_path / "work") == [1, 2]
    assert_same_end(bench.train(tmp_path / "work", every=4), end)


def test_vectors_drawn_for_each_step_are_drawn_again(bench: Bench, tmp_path: Path) -> None:
    """A continuous policy draws preference vectors when it fetches a step's batches, before that step's dropout."""
    from modpo.methods.modpo import training_arguments
    from modpo.models.folders import lora_config
    from modpo.training.continuous import ContinuousConfig, ContinuousTrainer

    experiment, reference = bench.experiment, bench.reference
    assert experiment.lora is not None

    def train(work: Path, *, stop: bool = False) -> dict[str, Tensor]:
        trainer = ContinuousTrainer(
            reference.model,
            args=training_arguments(experiment, experiment.sweep.weights[0], work, kind=ContinuousConfig),
            train_dataset=bench.scored.dataset(),
            peft_config=lora_config(experiment.lora),
            processing_class=reference.tokenizer,
            objectives=experiment.objectives,
        )
        interruption = Interruption()
        if stop:
            interruption.note(signal.SIGINT)
        trainer.train_resumably(Checkpoints(work, {}, every=100, keep=1), interruption, "test")
        weights = {name: tensor.clone() for name, tensor in trained_tensors(trainer.model).items()}
        give_base_back(trainer, reference)
        return weights

    whole = train(tmp_path / "whole")
    assert any("objective_1" in name for name in whole)
    for _ in range(STEPS_IN_EPOCH + 2):
        train(tmp_path / "work", stop=True)
    assert_same(train(tmp_path / "work"), whole)


def test_a_checkpoint_of_the_last_step_is_not_made(bench: Bench, tmp_path: Path) -> None:
    """transformers would go on from it: past `max_steps`, in the middle of an epoch."""
    training = replace(bench.experiment.training, max_steps=8)
    short = replace(bench, experiment=replace(bench.experiment, training=training))
    end = short.train(tmp_path / "work", every=4)
    assert end.steps == 8
    assert checkpoints(tmp_path / "work") == [4]
    assert_same_end(short.train(tmp_path / "work", every=4), end)


# --- which checkpoint -----------------------------------------------------------------------------------------


def test_without_any_that_verifies_it_starts_over(
    bench: Bench, undisturbed: tuple[End, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed[1] / "checkpoint-9", tmp_path / "checkpoint-9")
    flip_a_bit(tmp_path / "checkpoint-9" / WEIGHTS)
    assert_same_end(bench.train(tmp_path, every=10), undisturbed[0])
    assert "no checkpoint verifies, so training starts from the beginning" in capsys.readouterr().err
    assert checkpoints(tmp_path) == [10, 20]


def test_what_a_run_is_known_by(experiment_file: Path, tmp_path: Path, fault) -> None:
    """`modpo train --output` has no experiment.yaml that would find it out before."""
    command = ["train", str(experiment_file), *WEIGHTS_OPTION, "--output", str(tmp_path / "policy")]
    fault("step.done:2:term")
    assert main(command) == 143
    fault("")
    for override, words in {
        "training.learning_rate=2e-2": "training.learning_rate (0.01, now 0.02)",
        "seed=3": "seed (0, now 3)",
        "data.max_length=60": "data.tokens",
        "objectives.concise.scale=1": "objectives.concise",
        "lora.r=8": "lora.r (4, now 8)",
    }.items():
        changed = read_experiment(experiment_file, [override])
        with pytest.raises(IntegrityError) as refused:
            train_point(changed, {"kind": 0.5, "concise": 0.5}, tmp_path / "policy")
        assert words in str(refused.value)
    with pytest.raises(IntegrityError, match=r"weights\.kind \(0\.5, now 0\.4\)"):
        train_point(read_experiment(experiment_file), {"kind": 0.4, "concise": 0.6}, tmp_path / "policy")
    assert checkpoints(tmp_path / ".work-policy") == [2]


def test_another_base_model_is_refused(tmp_path: Path, tiny_model: Path, fault) -> None:
    """By its weights, not by its path."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    experiment = read_experiment(write_training(tmp_path, model))
    fault("step.done:2:term")
    with pytest.raises(Interrupted):
        train_point(experiment, {"kind": 0.5, "concise": 0.5})
    fault("")
    flip_a_bit(model / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"data\.reference, model\.weights"):
        train_point(experiment, {"kind": 0.5, "concise": 0.5})


# --- sweeps and single points ---------------------------------------------------------------------------------


def work_folder(experiment: Experiment) -> Path:
    return experiment.output_dir / "points" / f".work-{POINT}"


def saved_by(end: End, folder: Path) -> bool:
    """Whether an adapter on disk is that of the end of a training."""
    saved = load_file(folder / "adapter_model.safetensors")
    return all(torch.equal(saved[name.replace(".default", "")], tensor) for name, tensor in end.weights.items())


def test_a_signal_saves_and_leaves(
    experiment_file: Path, undisturbed: tuple[End, Path], fault, capfd: pytest.CaptureFixture[str]
) -> None:
    experiment = read_experiment(experiment_file)
    fault("step.done:8:term")
    assert main(["sweep", str(experiment_file), "--no-evaluate"]) == 143
    said = capfd.readouterr().err.splitlines()
    assert said[-1] == "error: interrupted; fix: run the same command again to go on"
    assert f"{POINT}: saved at step 8 of {STEPS}" in said
    assert checkpoints(work_folder(experiment)) == [5, 8]
    fault("")
    assert main(["sweep", str(experiment_file), "--no-evaluate"]) == 0
    assert f"{POINT}: goes on from step 8 of {STEPS}" in capfd.readouterr().err
    (point,) = [entry for entry in (experiment.output_dir / "points").iterdir() if entry.name != ".lock"]
    assert saved_by(undisturbed[0], point)


def test_a_signal_at_the_last_step_waits_for_the_policy(experiment_file: Path, undisturbed, fault) -> None:
    experiment = read_experiment(experiment_file)
    fault(f"step.done:{STEPS}:term")
    assert main(["sweep", str(experiment_file), "--no-evaluate"]) == 143
    assert saved_by(undisturbed[0], point_folder(experiment, experiment.sweep.weights[0]))
    assert not work_folder(experiment).exists()
    (work_folder(experiment) / "checkpoint-20").mkdir(parents=True)  # as if killed before they were deleted
    fault("")
    assert run_sweep(experiment) == []
    assert not work_folder(experiment).exists()


def test_without_checkpoints_a_signal_stops_after_the_step(
    experiment_file: Path, undisturbed, fault, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", str(experiment_file), "--no-evaluate", "--set", "training.save_steps=0"]
    experiment = read_experiment(experiment_file)
    fault("step.done:2:int")
    assert main(command) == 130
    assert f"stopped at step 2 of {STEPS}" in capfd.readouterr().err
    assert checkpoints(work_folder(experiment)) == []
    fault("")
    assert main(command) == 0
    assert saved_by(undisturbed[0], point_folder(experiment, experiment.sweep.weights[0]))


def test_scoring_stops_where_it_is(experiment_file: Path, fault, capfd: pytest.CaptureFixture[str]) -> None:
    for action, code in (("term", 143), ("int", 130)):
        fault(f"shard.row:1:{action}")
        assert main(["score", str(experiment_file)]) == code
        assert capfd.readouterr().err.endswith("error: interrupted; fix: run the same command again to go on\n")


def test_how_it_is_saved_is_no_part_of_the_run(experiment_file: Path, undisturbed, fault) -> None:
    """Checkpoints may come more often while a training is going on; a finished one is kept, whatever they were."""
    fault("step.done:7:term")
    assert main(["sweep", str(experiment_file), "--no-evaluate"]) == 143
    fault("")
    often = read_experiment(experiment_file, ["training.save_steps=4", "training.save_total_limit=1"])
    assert run_sweep(often) == []
    folder = point_folder(often, often.sweep.weights[0])
    assert saved_by(undisturbed[0], folder)
    before = folder.stat().st_mtime_ns
    assert run_sweep(read_experiment(experiment_file, ["training.save_steps=0"])) == []
    assert folder.stat().st_mtime_ns == before


@pytest.mark.parametrize("option", ["training.save_steps=-1", "training.save_total_limit=0", "training.save_steps=0.5"])
def test_what_cannot_be_is_refused(experiment_file: Path, option: str) -> None:
    with pytest.raises(InputError, match=option.partition("=")[0]):
        read_experiment(experiment_file, [option])


def test_killed_before_the_policy_is_published(experiment_file: Path, undisturbed, fault) -> None:
    experiment = read_experiment(experiment_file)
    folder = point_folder(experiment, experiment.sweep.weights[0])
    fault("folder.filled:7:raise")  # after what rows make, how they are read, and checkpoints 5, 10, 15 and 20
    run_sweep(experiment)
    assert checkpoints(work_folder(experiment)) == [15, 20]
    assert not folder.exists()
    fault("")
    assert run_sweep(experiment) == []
    assert saved_by(undisturbed[0], folder)


def test_seconds_add_up(
    bench: Bench, undisturbed: tuple[End, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 100))  # each look at the clock is 100 s later
    monkeypatch.setattr("modpo.base.costs.monotonic", lambda: next(clock))
    stopped = bench.train(tmp_path, every=100, stop=True)
    assert json.loads((tmp_path / "checkpoint-1" / "progress.json").read_text())["seconds"] == 100
    assert stopped.cost["seconds"] == 200
    resumed = bench.train(tmp_path, every=100)
    assert resumed.cost["seconds"] == 200
    assert timeless(resumed.cost) == timeless(undisturbed[0].cost)


# --- numbers --------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_at_step_7(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = MODPOTrainer._pair_losses

    def broken(self: MODPOTrainer, logps: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        found = losses(self, logps, inputs)
        return (found[0] * float("nan"), *found[1:]) if self.state.global_step == 7 else found

    monkeypatch.setattr(MODPOTrainer, "_pair_losses", broken)


def test_nan_leaves_the_last_good_checkpoint(experiment_file: Path, tmp_path: Path, broken_at_step_7, capsys) -> None:
    options = ["--set", "training.save_steps=3", *WEIGHTS_OPTION, "--output", str(tmp_path / "policy")]
    for _ in range(2):  # from the beginning, and from the checkpoint
        assert main(["train", str(experiment_file), *options]) == 6
        assert "error: step 7: the loss of" in capsys.readouterr().err
        assert checkpoints(tmp_path / ".work-policy") == [3, 6]
    experiment = read_experiment(experiment_file)
    assert run_sweep(experiment) == [POINT]
    assert checkpoints(work_folder(experiment)) == [5]


def test_weights_that_are_not_finite_are_not_saved(bench: Bench, tmp_path: Path) -> None:
    class Spoiler(TrainerCallback):
        def on_step_end(self, args: object, state: TrainerState, control: object, **kwargs: Any) -> None:
            if state.global_step == 4:
                next(iter(trained_tensors(kwargs["model"]).values()))[0, 0] = float("inf")

    trainer = bench.trainer(tmp_path)
    trainer.add_callback(Spoiler())
    name = next(iter(trained_tensors(trainer.model)))
    with pytest.raises(NumericError, match=f"step 4: {name} is not finite"):
        trainer.train_resumably(Checkpoints(tmp_path, {}, every=4, keep=1), Interruption(), "test")
    assert checkpoints(tmp_path) == []
    give_base_back(trainer, bench.reference)


# --- killed ---------------------------------------------------------------------------------------------------

# One interpreter that has everything imported; each fault is done to a fork of it.
KILLER = """
import gc, os, sys
import modpo.training.resumable, modpo.pipeline.preflight, modpo.methods.sweep, modpo.training.trainer
from modpo.cli import main

gc.freeze()
for fault in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        os.environ["MODPO_FAULT"] = fault
        os._exit(main(["sweep", sys.argv[1], "--no-evaluate", "--set", "training.save_total_limit=1"]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    points = os.path.join(os.path.dirname(sys.argv[1]), "run", "points")
    visible = [name for _, folders, _ in os.walk(points) for name in folders if name.startswith("checkpoint")]
    print(code, *visible, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_again_and_again(experiment_file: Path, undisturbed: tuple[End, Path]) -> None:
    """While scoring, at a step, in the middle of a save, while an older checkpoint is deleted, and at the end."""
    faults = {
        "shard.row:2:kill": "-9",
        "step.done:7:kill": "-9 checkpoint-5",
        "folder.filled:1:kill": "-9 checkpoint-5",  # of checkpoint 10
        "checkpoint.retired:1:kill": "-9 checkpoint-10",
        "step.done:1:kill": "-9 checkpoint-10",
        "folder.flushed:3:kill": "-9 checkpoint-20",  # of the policy, after checkpoints 15 and 20
        "none": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(experiment_file), *faults],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines() == list(faults.values()), done.stderr
    experiment = read_experiment(experiment_file)
    assert saved_by(undisturbed[0], point_folder(experiment, experiment.sweep.weights[0]))
    assert not work_folder(experiment).exists()
