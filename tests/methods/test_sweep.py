"""Points of a sweep: what is kept, what is refused, and that one does not reach the next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from modpo.base.errors import EnvironmentFault, IntegrityError
from modpo.base.files import locked
from modpo.evaluation.evaluate import evaluate_sweep
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from modpo.methods.sweep import finished_points, run_sweep
from tests.kit import flip_a_bit, times


def adapters(experiment: Experiment) -> dict[str, bytes]:
    return {p.name: (p.folder / "adapter_model.safetensors").read_bytes() for p in finished_points(experiment)}


def test_finished_points_are_kept_and_the_same_seed_gives_the_same_bytes(copied_file: Path, tmp_path: Path) -> None:
    copied = read_experiment(copied_file)
    before = times(copied.output_dir / "points")
    assert run_sweep(copied) == []
    assert times(copied.output_dir / "points") == before
    again = read_experiment(copied_file, [f"output_dir={tmp_path / 'again'}"])
    run_sweep(again)
    assert adapters(again) == adapters(copied)


def test_a_second_sweep_with_another_beta_scores_nothing_again(
    copied_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_sweep(read_experiment(copied_file, ["training.beta=0.5", "seed=0", f"output_dir={tmp_path / 'other'}"]))
    said = capsys.readouterr().err
    assert "reference log-probs: 7 of 7 prompts, in the cache" in said
    assert "reward concise: 7 of 7 prompts, in the cache" in said


def test_a_folder_of_another_experiment_is_refused(copied: Experiment, copied_file: Path) -> None:
    before = adapters(copied)
    with pytest.raises(IntegrityError, match="training differ"):
        run_sweep(read_experiment(copied_file, ["training.beta=0.7"]))
    assert adapters(copied) == before
    more = read_experiment(copied_file, ["sweep={grid: 1}"])
    assert run_sweep(more) == []  # other vectors may join


def test_a_changed_adapter_is_found(copied: Experiment) -> None:
    path = next(finished_points(copied)).folder / "adapter_model.safetensors"
    flip_a_bit(path)
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        run_sweep(copied)


def test_two_sweeps_on_one_folder(copied: Experiment) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys, time, pathlib; from modpo.base.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)",
        str(copied.output_dir),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(EnvironmentFault, match="another process"):
            run_sweep(copied)
        holder.kill()
    with locked(copied.output_dir):
        pass


def test_all_weights_trained_without_adapters(copied_file: Path, tmp_path: Path) -> None:
    overrides = ["lora=null", "training.learning_rate=1e-3", f"output_dir={tmp_path / 'full'}"]
    experiment = read_experiment(copied_file, overrides)
    assert run_sweep(experiment) == []
    points = list(finished_points(experiment))
    assert len(points) == 2
    front = evaluate_sweep(experiment)
    assert all(abs(p.kl.mean) > 0 for p in front.points)
    models = [AutoModelForCausalLM.from_pretrained(p.folder) for p in points]
    first, second = (m.get_input_embeddings().weight for m in models)
    assert not torch.equal(first, second)


def test_saved_modules_of_one_point_do_not_reach_the_next(copied_file: Path, tmp_path: Path) -> None:
    """With `modules_to_save`, PEFT's unload leaves the trained head in the base: the next point must not see it."""
    overrides = ["lora.modules_to_save=[lm_head]", f"output_dir={tmp_path / 'saved'}"]
    both = read_experiment(copied_file, overrides)
    assert run_sweep(both) == []
    alone = read_experiment(
        copied_file,
        [*overrides[:1], f"output_dir={tmp_path / 'alone'}", "sweep={weights: [{kind: 0.25, concise: 0.75}]}"],
    )
    assert run_sweep(alone) == []
    assert adapters(both)["kind0.25-concise0.75"] == adapters(alone)["kind0.25-concise0.75"]
