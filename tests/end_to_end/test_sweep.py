"""A sweep of a tiny model from rows to front: what is finished stays, what is killed continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState

from modpo.base.artifact import Artifact
from modpo.base.errors import LESS_MEMORY, EnvironmentFault, IntegrityError, NumericError
from modpo.base.files import locked
from modpo.cli import main
from modpo.evaluation.evaluate import evaluate_sweep
from modpo.evaluation.measured import Measured, read_or_measure
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from modpo.methods.sweep import finished_points, run_sweep
from modpo.policies.steered_front import load_front

WORDS = ("sun", "sea", "rain", "road", "tea", "song", "book", "tree")


def write_rows(path: Path, prompts: int = 10) -> None:
    """Two pairs a prompt; the chosen answer is the friendlier one, and the longer one half of the time."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for i in range(prompts):
            word = WORDS[i % len(WORDS)]
            for extra in (0, 1):
                chosen = f"good {word}" + " and more" * int(rng.integers(0, 2)) + "!" * extra
                rejected = f"bad {word}" + " and more" * int(rng.integers(0, 2)) + "?" * extra
                file.write(json.dumps({"prompt": f"{i}: the {word}? ", "chosen": chosen, "rejected": rejected}) + "\n")


@pytest.fixture
def experiment_file(tmp_path: Path, tiny_model: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl")
    path = tmp_path / "experiment.yaml"
    path.write_text(
        f"""
model: {{model_name_or_path: {tiny_model}, dtype: float32}}
lora: {{r: 4}}
data: {{path: {tmp_path / "rows.jsonl"}, eval_prompts: 3, max_length: 64}}
objectives:
  kind: {{pairs: data}}
  concise:
    reward: modpo.rewards.text:word_count
    maximize: false
    scale: 0.5
    unit: words
training: {{per_device_train_batch_size: 4, learning_rate: 1e-2, num_train_epochs: 1}}
sweep: {{grid: 2}}
evaluation: {{max_new_tokens: 8, bootstrap: 50}}
output_dir: {tmp_path / "run"}
cache_dir: {tmp_path / "cache"}
"""
    )
    return path


@pytest.fixture
def experiment(experiment_file: Path) -> Experiment:
    return read_experiment(experiment_file)


def adapters(experiment: Experiment) -> dict[str, bytes]:
    return {p.name: (p.folder / "adapter_model.safetensors").read_bytes() for p in finished_points(experiment)}


def test_from_rows_to_front(experiment: Experiment, experiment_file: Path) -> None:
    assert main(["sweep", str(experiment_file)]) == 0
    folder = experiment.output_dir
    for name in ("front.json", "front.csv", "front.png", "report.html", "responses.jsonl", "experiment.yaml"):
        assert (folder / name).stat().st_size > 0, name
    front = load_front(folder)
    assert [p.weights for p in front.points] == [{"kind": 0.75, "concise": 0.25}, {"kind": 0.25, "concise": 0.75}]
    assert front.reference.kl.mean == 0
    assert front.reference.scores["kind"].mean == 0.5  # the reference prefers no answer to another
    for point in front.points:
        assert (folder / str(point.adapter) / "adapter_config.json").is_file()
        assert point.cost.tokens > 0
    answers = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
    assert len(answers) == 3 * 3  # policies x held-out prompts
    words = [len(a["response"].split()) for a in answers if a["policy"] == front.points[0].name]
    assert front.points[0].scores["concise"].mean == pytest.approx(np.mean(words))


@pytest.mark.parametrize("merged", [True, False])
def test_kl_is_the_log_ratio_of_the_answers(experiment: Experiment, merged: bool) -> None:
    """log pi(y|x) - log pi_ref(y|x), packed, against two plain forward passes with and without the adapter."""
    from modpo.forward.logprobs import padded_logps
    from modpo.forward.policy import Policy
    from modpo.models.reference import ReferenceModel

    run_sweep(experiment)
    point = next(finished_points(experiment))
    reference = ReferenceModel(experiment.model, experiment.cache_dir)
    prompts, answers = [[5, 6, 7], [8, 9]], [[10, 11, 12, 13], [14, 15]]
    policy = Policy(reference, point.folder)
    with policy.loaded(merged=merged) as model:
        found = policy.log_ratios(model, prompts, [[a] for a in answers], packing=True)
        with torch.no_grad():
            ours = padded_logps(model, prompts, [[a] for a in answers])
    with torch.no_grad():  # the base is what it was, once the adapter is off
        theirs = padded_logps(reference.model, prompts, [[a] for a in answers])
    assert (ours - theirs).abs().max() > 0.01  # training has moved the policy
    torch.testing.assert_close(torch.tensor(found), ours - theirs, atol=2e-3, rtol=1e-3)


def test_finished_points_are_kept_and_the_same_seed_gives_the_same_bytes(
    experiment: Experiment, tmp_path: Path, experiment_file: Path
) -> None:
    assert run_sweep(experiment) == []
    before = adapters(experiment)
    times = [p.folder.stat().st_mtime_ns for p in finished_points(experiment)]
    assert run_sweep(experiment) == []
    assert [p.folder.stat().st_mtime_ns for p in finished_points(experiment)] == times
    again = read_experiment(experiment_file, [f"output_dir={tmp_path / 'again'}"])
    run_sweep(again)
    assert adapters(again) == before


def test_a_second_sweep_with_another_beta_scores_nothing_again(
    experiment: Experiment, experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_sweep(experiment)
    capsys.readouterr()
    other = read_experiment(experiment_file, ["training.beta=0.5", "seed=0", f"output_dir={tmp_path / 'other'}"])
    run_sweep(other)
    said = capsys.readouterr().err
    assert "reference log-probs: 7 of 7 prompts, in the cache" in said
    assert "reward concise: 7 of 7 prompts, in the cache" in said


def test_killed_in_the_middle_it_continues(experiment: Experiment, experiment_file: Path, tmp_path: Path) -> None:
    undisturbed = read_experiment(experiment_file, [f"output_dir={tmp_path / 'undisturbed'}"])
    run_sweep(undisturbed)
    first = experiment.output_dir / "points" / "kind0.75-concise0.25"
    command = [sys.executable, "-m", "modpo", "sweep", str(experiment_file), "--no-evaluate"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not first.is_dir() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.is_dir()
    kept = (first / "adapter_model.safetensors").stat().st_mtime_ns
    assert run_sweep(experiment) == []
    assert (first / "adapter_model.safetensors").stat().st_mtime_ns == kept
    assert [p.name for p in (experiment.output_dir / "points").iterdir() if p.name.startswith(".")] in ([], [".lock"])
    assert set(adapters(experiment)) == set(adapters(undisturbed))


def test_a_point_that_fails_is_recorded_and_the_others_are_kept(
    experiment: Experiment, experiment_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from modpo.training.trainer import MODPOTrainer

    compute_loss = MODPOTrainer.compute_loss

    def broken(self: MODPOTrainer, *args: object, **kwargs: object) -> object:
        if self.args.weights["kind"] == 0.75 and self.state.global_step == 1:
            raise NumericError("step 1: the loss is not finite")
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(MODPOTrainer, "compute_loss", broken)
    assert main(["sweep", str(experiment_file)]) == 5
    assert "kind0.75-concise0.25" in capsys.readouterr().err
    front = load_front(experiment.output_dir)
    assert [p.name for p in front.points] == ["kind0.25-concise0.75"]
    assert [(f.name, f.reason) for f in front.failed] == [
        ("kind0.75-concise0.25", "NumericError: step 1: the loss is not finite")
    ]
    monkeypatch.undo()
    assert main(["sweep", str(experiment_file)]) == 0
    assert load_front(experiment.output_dir).failed == []


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")]
)
def test_out_of_memory_says_what_to_lower(
    experiment: Experiment,
    experiment_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: RuntimeError,
) -> None:
    """A sweep records it for the point, `train` leaves with it."""
    from modpo.training.trainer import MODPOTrainer

    def broken(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(MODPOTrainer, "compute_loss", broken)
    assert main(["sweep", str(experiment_file)]) == 5
    for record in (experiment.output_dir / "failed").iterdir():
        assert f"out of memory: {error}; fix: {LESS_MEMORY}" in json.loads(record.read_text())["reason"]
    capsys.readouterr()
    assert main(["train", str(experiment_file), "--weights", "kind=0.5,concise=0.5"]) == 3
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said == [f"error: out of memory: {error}; fix: {LESS_MEMORY}"]


def test_weights_that_turn_nan_in_the_last_step_are_not_published(
    experiment: Experiment, experiment_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No loss sees them, and no checkpoint is saved after them."""
    from modpo.training.callbacks import FiniteGradients
    from modpo.training.checkpoints import trained_tensors

    def broken(
        self: FiniteGradients, args: object, state: TrainerState, control: object, **kwargs: torch.nn.Module
    ) -> None:
        if state.global_step == state.max_steps:
            next(iter(trained_tensors(kwargs["model"]).values())).fill_(float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(FiniteGradients, "on_step_end", broken)
        command = ["train", str(experiment_file), "--weights", "kind=0.75,concise=0.25"]
        assert main(command) == 6
        assert "adapter_model.safetensors: " in (said := capsys.readouterr().err)
        assert "is not finite, so it is not published; fix: lower the learning rate" in said
        assert list(finished_points(experiment)) == []
    assert main(command) == 0  # from the checkpoint before
    assert [point.name for point in finished_points(experiment)] == ["kind0.75-concise0.25"]


def test_a_folder_of_another_experiment_is_refused(experiment: Experiment, experiment_file: Path) -> None:
    run_sweep(experiment)
    before = adapters(experiment)
    changed = read_experiment(experiment_file, ["training.beta=0.7"])
    with pytest.raises(IntegrityError, match="training differ"):
        run_sweep(changed)
    assert adapters(experiment) == before
    more = read_experiment(experiment_file, ["sweep={grid: 1}"])
    assert run_sweep(more) == []  # other vectors may join


def test_a_changed_adapter_is_found(experiment: Experiment) -> None:
    run_sweep(experiment)
    path = next(finished_points(experiment)).folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        run_sweep(experiment)


def test_two_sweeps_on_one_folder(experiment: Experiment) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys, time, pathlib; from modpo.base.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)",
        str(experiment.output_dir),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(EnvironmentFault, match="another process"):
            run_sweep(experiment)
        holder.kill()
    with locked(experiment.output_dir):
        pass


def test_all_weights_trained_without_adapters(experiment_file: Path, tmp_path: Path) -> None:
    overrides = ["lora=null", "training.learning_rate=1e-3", f"output_dir={tmp_path / 'full'}"]
    experiment = read_experiment(experiment_file, overrides)
    assert run_sweep(experiment) == []
    points = list(finished_points(experiment))
    assert len(points) == 2
    front = evaluate_sweep(experiment)
    assert all(abs(p.kl.mean) > 0 for p in front.points)
    models = [AutoModelForCausalLM.from_pretrained(p.folder) for p in points]
    first, second = (m.get_input_embeddings().weight for m in models)
    assert not torch.equal(first, second)


def test_measured_policies_are_not_measured_again(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    run_sweep(experiment)
    front = evaluate_sweep(experiment)
    capsys.readouterr()
    assert evaluate_sweep(experiment) == front
    assert "answers of" not in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_not_replaced(
    experiment: Experiment, experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    options = ["--weights", "kind=0.5,concise=0.5", "--output", str(tmp_path / "mine")]
    assert main(["train", str(experiment_file), *options]) == 2
    assert "holds something that modpo did not make" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_points_of_another_experiment_are_not_measured(experiment: Experiment, experiment_file: Path) -> None:
    run_sweep(experiment)
    with pytest.raises(IntegrityError, match="objectives differ"):
        evaluate_sweep(read_experiment(experiment_file, ["objectives.concise.scale=2"]))


def test_what_cannot_be_measured_is_refused_before_training(
    experiment: Experiment, experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "What now? "}\n{"prompt": "And then? "}\n')
    overrides = ["--set", f"data.eval_path={prompts}", "--set", "data.eval_format=prompts"]
    assert main(["sweep", str(experiment_file), *overrides]) == 2
    assert "no held-out pairs to measure kind on" in capsys.readouterr().err
    assert not experiment.output_dir.exists()


def test_answers_with_any_character_are_read_back(tmp_path: Path) -> None:
    strange = "one\u2028two\x85three\x1cfour"
    answer = {"policy": "reference", "prompt_index": 0, "prompt": "?", "response": strange, "tokens": 3, "kl": 0.0}
    answer["rewards"] = {"tokens": 7.0}  # an objective may be called like another number of the answer
    measured = read_or_measure(Artifact(tmp_path / "kept", {"of": "a test"}), lambda: Measured([answer], {}, []))
    assert measured.answers == [answer]
    assert measured.scores("tokens").tolist() == [7.0]
    assert measured.numbers("tokens").tolist() == [3.0]


def test_saved_modules_of_one_point_do_not_reach_the_next(experiment_file: Path, tmp_path: Path) -> None:
    """With `modules_to_save`, PEFT's unload leaves the trained head in the base: the next point must not see it."""
    overrides = ["lora.modules_to_save=[lm_head]", f"output_dir={tmp_path / 'saved'}"]
    both = read_experiment(experiment_file, overrides)
    assert run_sweep(both) == []
    alone = read_experiment(
        experiment_file,
        [*overrides[:1], f"output_dir={tmp_path / 'alone'}", "sweep={weights: [{kind: 0.25, concise: 0.75}]}"],
    )
    assert run_sweep(alone) == []
    assert adapters(both)["kind0.25-concise0.75"] == adapters(alone)["kind0.25-concise0.75"]


def test_the_model_s_own_generation_settings_do_not_change_the_policy(tiny_model: Path) -> None:
    from modpo.forward.generate import generate

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = [[5, 6, 7], [8, 9]]
    plain = generate(model, tokenizer, prompts, ends=[0], max_new_tokens=12)
    model.generation_config.repetition_penalty = 50.0
    assert generate(model, tokenizer, prompts, ends=[0], max_new_tokens=12) == plain
    assert model.generation_config.repetition_penalty == 50.0
