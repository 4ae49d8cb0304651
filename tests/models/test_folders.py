"""The reference policy: what its fingerprint depends on, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modpo.base.errors import InputError
from modpo.experiment.sections import LoraSection, ModelSection
from modpo.models import folders as models
from modpo.models.folders import default_cache_dir, lora_config
from modpo.models.reference import LoadedModel, ReferenceModel
from tests.kit import edit_json, flip_a_bit

WHERE = "experiment.yaml:2"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_model, tmp_path / "copy")


def reference(folder: Path | str, **section: str) -> ReferenceModel:
    return ReferenceModel(ModelSection(str(folder), **{"dtype": "float32", **section}), Path("unused"), WHERE)


def edit_config(folder: Path, **changes: object) -> None:
    edit_json(folder / "config.json", **changes)


def flip_a_weight(folder: Path) -> None:
    flip_a_bit(folder / "model.safetensors")


# --- fingerprints -------------------------------------------------------------------------------------------


def test_the_fingerprint_does_not_depend_on_the_path(tiny_model, folder, tmp_path, monkeypatch):
    expected = reference(tiny_model).fingerprint
    assert reference(folder).fingerprint == expected
    (tmp_path / "link").symlink_to(folder)
    assert reference(tmp_path / "link").fingerprint == expected
    monkeypatch.chdir(tmp_path)
    assert reference("copy").fingerprint == expected
    assert str(tmp_path) not in json.dumps(expected)
    assert json.loads(json.dumps(expected)) == expected


@pytest.mark.parametrize(
    "changes",
    [{"_name_or_path": "/elsewhere"}, {"transformers_version": "9"}, {"use_cache": False}, {"dtype": "float16"}],
)
def test_what_does_not_change_a_log_prob_is_left_out(tiny_model, folder, changes):
    edit_config(folder, **changes)
    assert reference(folder).fingerprint == reference(tiny_model).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        flip_a_weight,
        lambda folder: edit_config(folder, rms_norm_eps=0.1),
        lambda folder: edit_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 5.0}),
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "model-2.safetensors"),
    ],
    ids=["weight", "norm", "rope", "more weights"],
)
def test_what_changes_a_log_prob_changes_the_fingerprint(tiny_model, folder, change: Callable[[Path], object]):
    change(folder)
    assert reference(folder).fingerprint != reference(tiny_model).fingerprint


def test_the_number_format_changes_the_fingerprint(tiny_model):
    assert reference(tiny_model).fingerprint != reference(tiny_model, dtype="bfloat16").fingerprint


def test_the_fingerprint_is_found_without_loading_weights(tiny_model, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    assert reference(tiny_model).fingerprint["weights"]
    assert reference(tiny_model).tokenizer.eos_token == "<eos>"


# --- models in memory ---------------------------------------------------------------------------------------


def loaded(tiny_model: Path, lora: LoraSection | None = None) -> LoadedModel:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    if lora is not None:
        torch.manual_seed(0)
        model = get_peft_model(model, lora_config(lora))
    return LoadedModel(model, reference(tiny_model).tokenizer)


def test_the_fingerprint_of_a_loaded_model_is_of_its_content(tiny_model, folder):
    assert loaded(tiny_model).fingerprint == loaded(folder).fingerprint
    flip_a_weight(folder)
    assert loaded(tiny_model).fingerprint != loaded(folder).fingerprint
    half = loaded(tiny_model)
    half.model.bfloat16()
    assert half.fingerprint != loaded(tiny_model).fingerprint


def test_an_infinite_number_of_the_configuration_is_part_of_the_fingerprint(tiny_model, folder):
    """As in Mamba2, Nemotron-H and others, whose time steps have no upper limit; a manifest must be JSON."""
    edit_config(folder, time_step_limit=[0.0, float("inf")])
    on_disk = reference(folder).fingerprint
    assert on_disk["config"]["time_step_limit"] == [0.0, "Infinity"]
    model = reference(tiny_model).model
    model.config.time_step_limit = (0.0, float("inf"))
    in_memory = LoadedModel(model, reference(folder).tokenizer).fingerprint
    for fingerprint in (on_disk, in_memory):
        assert json.loads(json.dumps(fingerprint, allow_nan=False)) == fingerprint


def test_a_tensor_without_dimensions_is_hashed(tiny_model):
    import torch

    prints = []
    for value in (1.0, 2.0):
        made = loaded(tiny_model)
        made.model.register_buffer("scale", torch.tensor(value))
        prints.append(made.fingerprint)
    assert prints[0] != prints[1]


def test_adapters_are_part_of_the_fingerprint(tiny_model):
    """Same tensors, another lora_alpha: another policy."""
    bare, first, again = loaded(tiny_model), loaded(tiny_model, LoraSection(r=2)), loaded(tiny_model, LoraSection(r=2))
    assert first.fingerprint == again.fingerprint != bare.fingerprint
    assert loaded(tiny_model, LoraSection(r=2, lora_alpha=32.0)).fingerprint != first.fingerprint


def test_the_fingerprint_of_adapters_is_the_same_in_every_process(tiny_model):
    """PEFT keeps module names in sets, whose order is another in every process."""
    code = (
        "import json, sys; from pathlib import Path; from tests.models.test_folders import loaded; "
        "from modpo.experiment.sections import LoraSection; "
        "print(json.dumps(loaded(Path(sys.argv[1]), LoraSection(r=2)).fingerprint))"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == loaded(tiny_model, LoraSection(r=2)).fingerprint


# --- loading ------------------------------------------------------------------------------------------------


def test_the_model_is_read_once_in_its_number_format_for_evaluation(tiny_model):
    import torch

    policy = reference(tiny_model, dtype="bfloat16")
    assert policy.model is policy.model
    assert policy.model.dtype == torch.bfloat16
    assert not policy.model.training
    assert policy.tokenizer is policy.tokenizer


def test_a_released_model_is_read_again(tiny_model):
    policy = reference(tiny_model)
    before = policy.model
    policy.release()
    assert policy.model is not before
    policy.release()
    policy.release()


def test_a_tensor_that_the_files_lack_is_not_drawn_at_random(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"model_name_or_path: .*lacks 1 of the model's tensors \(lm_head.weight\); fix"
    ):
        _ = reference(folder).model
    edit_config(folder, tie_word_embeddings=True)  # then it is the embedding
    model = reference(folder).model
    assert (model.lm_head.weight == model.get_input_embeddings().weight).all()


def test_a_tokenizer_without_padding_pads_with_its_end(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert reference(folder).tokenizer.pad_token == "<eos>"


def test_adapters_are_as_the_file_says():
    section = LoraSection(r=4, lora_alpha=8.0, lora_dropout=0.1, target_modules=["q_proj"], modules_to_save=["lm_head"])
    config = lora_config(section)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8.0, 0.1)
    assert (config.target_modules, config.modules_to_save) == ({"q_proj"}, ["lm_head"])


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_folder_without_its_configuration_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"^experiment.yaml:2:model_name_or_path: .*copy has no {name}; fix: "):
        reference(folder)


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", None])
def test_a_folder_without_safe_weights_is_refused(folder, pickled):
    (folder / "model.safetensors").unlink()
    if pickled:
        (folder / pickled).write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"copy has no .safetensors weights; fix: .*save_pretrained; pickled weights"):
        reference(folder)


@pytest.mark.parametrize("name", ["no/such-model", "no-such-folder", "/no/such/folder", "a b", "../x/y/z"])
def test_a_model_that_is_nowhere_is_refused_in_one_line(name, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        reference(name)
    assert str(caught.value).startswith(f"{WHERE}:model_name_or_path: {name!r} is neither a folder here nor")
    assert models.EMBEDDED in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_with_an_adapter_is_refused(tiny_model, folder):
    """transformers would load the adapter, and with it the base that the adapter names instead of this folder's."""
    loaded(tiny_model, LoraSection(r=2)).model.save_pretrained(folder)
    with pytest.raises(InputError, match=r"copy holds a PEFT adapter, not a model; fix: merge it"):
        reference(folder)


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `org/tiny` in the Hub's own cache, with no network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    return shutil.copytree(tiny_model, repository / "snapshots" / commit)


def test_a_model_of_the_hub_is_found_in_its_cache(hub, tiny_model):
    assert reference("org/tiny").fingerprint == reference(tiny_model).fingerprint
    with pytest.raises(InputError, match="is neither a folder here nor to be had from the Hub"):
        reference("org/tiny", revision="another")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_unusable_model_of_the_hub_is_refused_like_a_folder(hub, name):
    (hub / name).unlink()
    with pytest.raises(InputError, match=r"experiment.yaml:2:model_name_or_path: .* has no "):
        reference("org/tiny")


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "SmolLM2-135M-Instruct"])
def test_the_embedded_name_is_fetched_into_the_cache(tiny_model, tmp_path, monkeypatch, name):
    asked: list[Path] = []

    def fetch(cache_dir: Path, *, progress: Callable[[str], None]) -> Path:
        asked.append(cache_dir)
        return tiny_model

    monkeypatch.setattr("modpo.models.embedded.fetch_model", fetch)
    assert ReferenceModel(ModelSection(name), tmp_path, WHERE).folder == tiny_model
    assert asked == [tmp_path]


def test_where_things_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("MODPO_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    for value in ("", None):
        monkeypatch.delenv("MODPO_CACHE") if value is None else monkeypatch.setenv("MODPO_CACHE", value)
        assert default_cache_dir() == Path.home() / ".cache" / "modpo"
