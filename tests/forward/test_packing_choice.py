"""`packing: auto` of experiments: decided once for a model, said, and the same in keys as true or false."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from modpo.base.errors import InputError
from modpo.base.files import read_manifest
from modpo.base.progress import say_once
from modpo.cli import main
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment
from modpo.forward.packing_choice import expected_packing, require_fixed_rope, with_packing
from modpo.models.reference import ReferenceModel
from tests.kit import preference_rows, write_experiment, write_rows

WINDOW = {"architecture": "Mistral", "sliding_window": 8}
DYNAMIC = {
    "max_position_embeddings": 32,
    "rope_parameters": {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10000.0},
}
CAPPED = {"architecture": "Granite", "logits_scaling": 4.0}  # known by its weights alone


@pytest.fixture(autouse=True)
def _nothing_said_before() -> None:
    say_once.cache_clear()


def model_like(tiny: Path, folder: Path, *, architecture: str = "Llama", **settings: object) -> Path:
    """The tiny model's shape and tokenizer, as another architecture."""
    shape = json.loads((tiny / "config.json").read_text())
    kept = {k: v for k, v in shape.items() if k not in ("architectures", "model_type", "rope_parameters")}
    config = getattr(transformers, f"{architecture}Config")(**(kept | settings))
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def experiment_of(tmp_path: Path, model: Path, **sections: str | None) -> Experiment:
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    return read_experiment(write_experiment(tmp_path, model, **sections))


def reference_of(experiment: Experiment) -> ReferenceModel:
    return ReferenceModel.of(experiment, writes=False)


def test_weights_are_read_once_to_know(tiny_model: Path, tmp_path: Path):
    """The model that was tried is the one that is used; in a later run none is read."""
    experiment = experiment_of(tmp_path, tiny_model)
    assert experiment.training.packing == "auto"
    first = reference_of(experiment)
    assert with_packing(experiment, first).training.packs is True
    assert "model" in vars(first)
    later = reference_of(experiment)
    assert with_packing(experiment, later).training.packs is True
    assert "model" not in vars(later)


def test_what_weights_have_shown_is_kept_with_its_reason(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    experiment = experiment_of(tmp_path, model_like(tiny_model, tmp_path / "capped", **CAPPED))
    line = "since the model cannot read packed ones: it scales or caps the logits behind its head"
    for _ in range(2):
        say_once.cache_clear()
        assert with_packing(experiment, reference_of(experiment)).training.packs is False
        assert capsys.readouterr().err.count(f"packing: rows are padded, {line}\n") == 1
    assert expected_packing(experiment, reference_of(experiment)).training.packs is True  # without weights


@pytest.mark.parametrize(("settings", "reason"), [(WINDOW, "slides over a window"), (DYNAMIC, "beyond 32 tokens")])
def test_what_a_configuration_says_needs_no_weights(
    settings: dict, reason: str, tiny_model: Path, tmp_path: Path, capsys
):
    model = model_like(tiny_model, tmp_path / "other", **settings)
    experiment = experiment_of(tmp_path, model)
    reference = reference_of(experiment)
    assert with_packing(experiment, reference).training.packs is False
    assert expected_packing(experiment, reference).training.packs is False
    assert "model" not in vars(reference)
    assert capsys.readouterr().err.count(reason) == 1
    asked = experiment_of(tmp_path, model, training="{packing: true}")
    with pytest.raises(InputError, match=rf"cannot read packed rows: .*{reason}.*; fix: set `packing: false`"):
        with_packing(asked, reference)
    assert main(["sweep", str(tmp_path / "experiment.yaml")]) == 2
    assert not (tmp_path / "run").exists()


def test_rows_within_the_original_length_are_packed(tiny_model: Path, tmp_path: Path):
    model = model_like(tiny_model, tmp_path / "other", **(DYNAMIC | {"max_position_embeddings": 64}))
    experiment = experiment_of(tmp_path, model)
    assert with_packing(experiment, reference_of(experiment)).training.packs is True
    require_fixed_rope(reference_of(experiment), 64, "here", "data.max_length")
    with pytest.raises(
        InputError, match=r"here:data.max_length: rows of up to 65 .*lower `data.max_length`.* 64 tokens"
    ):
        require_fixed_rope(reference_of(experiment), 65, "here", "data.max_length")


@pytest.mark.parametrize("settings", [WINDOW, DYNAMIC], ids=["window", "dynamic"])
def test_a_sweep_goes_through_padded(settings: dict, tiny_model: Path, tmp_path: Path, capsys):
    """From scores to the report, said once; keys hold what was decided, so that `false` finds everything there."""
    model = model_like(tiny_model, tmp_path / "other", **settings)
    experiment = experiment_of(tmp_path, model, training="{per_device_train_batch_size: 4, max_steps: 2}")
    path = str(tmp_path / "experiment.yaml")
    assert main(["sweep", path]) == 0
    assert capsys.readouterr().err.count("packing: rows are padded") == 1
    policies = sorted((experiment.output_dir / "points").iterdir())
    before = [read_manifest(folder) for folder in policies]
    assert main(["sweep", path, "--set", "training.packing=false"]) == 0
    assert "finished before, kept" in capsys.readouterr().err
    assert [read_manifest(folder) for folder in policies] == before
