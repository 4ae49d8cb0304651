"""A base in 4 bits through the command line, and what is said where it cannot be read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from modpo.cli import main
from modpo.experiment.file import read_experiment
from modpo.forward.logprobs import padded_logps
from modpo.forward.policy import Policy
from modpo.front.schema import read_front
from modpo.models.quantized import keep_trainable_layout
from modpo.models.reference import ReferenceModel
from modpo.training.config import MODPOConfig
from modpo.training.trainer import MODPOTrainer
from tests.kit import edit_json, errors, preference_rows, write_experiment, write_rows
from tests.models.adapters import PROMPTS, RESPONSES
from tests.training.runs import LORA, log_column, moved_weights
from tests.training.runs import preference_rows as scored_rows

FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
TRAINING = "{per_device_train_batch_size: 4, learning_rate: 2e-2, num_train_epochs: 2}"


@pytest.fixture
def unread(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder that says that its weights are quantised: enough where nothing can read them."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit_json(folder / "config.json", quantization_config=settings)
    return folder


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)


COMMANDS = (["score"], ["sweep"], ["train", "--weights", "kind=0.5,concise=0.5"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_without_bitsandbytes_one_line_comes_before_any_work(
    command: list[str], unread: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], without_bitsandbytes: None
) -> None:
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    assert main([command[0], str(write_experiment(tmp_path, unread)), *command[1:]]) == 3
    (line,) = errors(capsys.readouterr().err)
    assert f"experiment.yaml:1:model_name_or_path: {unread} holds weights quantised by bitsandbytes, which" in line
    assert line.endswith("fix: pip install 'modpo[quantization]'")
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run").exists()


# --- with bitsandbytes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four_bits(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("four") / "model"
    read(tiny_model, quantization_config=BitsAndBytesConfig(**FOUR_BITS)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def read(folder: Path, **settings: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings).eval()


def as_read_here(folder: Path) -> Any:
    """The same numbers in every pass: laid out anew for inference, they would be rounded once more."""
    model = read(folder)
    keep_trainable_layout(model)
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lora": "null"}, "lora: is null, and quantised weights cannot be trained"),
        ({"sft": "{path: FOLDER/rows.jsonl, format: preference}"}, "sft: would be merged into quantised weights"),
        (
            {"objectives": "{kind: {reward: {train: {kind: reward_model}}}}", "sweep": "{weights: [{kind: 1}]}"},
            "objectives.kind.reward.train: would be merged into quantised weights",
        ),
    ],
    ids=["all weights", "sft", "reward model"],
)
def test_what_cannot_be_made_from_4_bits_is_refused_before_any_work(
    four_bits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], words: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    assert main(["sweep", str(write_experiment(tmp_path, four_bits, **change))]) == 2
    assert words in errors(capsys.readouterr().err)[0]
    assert not (tmp_path / "cache").exists()


def test_4_bits_are_trained_measured_and_baked(four_bits: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    assert main(["sweep", str(write_experiment(tmp_path, four_bits, training=TRAINING))]) == 0
    front = read_front(tmp_path / "run")
    first, second = front.points
    baked = tmp_path / "baked"
    between = "kind=0.5,concise=0.5"
    assert main(["bake", str(tmp_path / "run"), "--weights", between, "--output", str(baked)]) == 0
    merged = tmp_path / "merged"
    assert main(["bake", str(tmp_path / "run"), "--weights", between, "--merge", "--output", str(merged)]) == 0
    beside = logps(PeftModel.from_pretrained(as_read_here(four_bits), baked))
    assert (beside - logps(as_read_here(four_bits))).abs().max() > 1e-2  # the adapter says something
    assert not hasattr(read(merged).config, "quantization_config")
    torch.testing.assert_close(logps(read(merged)), beside, atol=1e-3, rtol=1e-4)
    _is_measured_as_trained(tmp_path / "run", str(first.adapter))
    assert first.adapter != second.adapter


def _is_measured_as_trained(run: Path, adapter: str) -> None:
    """What is measured is the adapter beside the base in 4 bits: merged into it, it would be rounded away."""
    reference = ReferenceModel.of(read_experiment(run.parent / "experiment.yaml"))
    beside = logps(PeftModel.from_pretrained(as_read_here(reference.folder), run / adapter))
    with Policy(reference, run / adapter).loaded(merged=True) as measured:
        torch.testing.assert_close(logps(measured), beside, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(logps(reference.model), logps(as_read_here(reference.folder)))


def logps(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return padded_logps(model.eval(), PROMPTS, RESPONSES)


def plain(model: Any) -> Any:
    """The oracle: the numbers that 4 bits stand for, in plain weights."""
    keep_trainable_layout(model)  # as they stand after a model has answered, rounded once more
    return model.dequantize().float().requires_grad_(True)


def already_read(folder: Path) -> Any:
    """A model that has answered before it is trained, which bitsandbytes may have laid out for that."""
    model = read(folder)
    logps(model)
    return model


@pytest.mark.parametrize("base", [read, already_read])
@pytest.mark.parametrize("packing", [True, False])
def test_all_adapters_get_the_gradient_that_they_have_beside_plain_weights(
    four_bits: Path, tmp_path: Path, plain_descent: dict[str, Any], base: Callable[[Path], Any], packing: bool
) -> None:
    def train(model: Any, name: str) -> MODPOTrainer:
        settings = {"output_dir": str(tmp_path / name), "cache_dir": str(tmp_path / name / "cache"), "seed": 1}
        torch.manual_seed(0)
        rows: Dataset = scored_rows()
        config = MODPOConfig(weights={"quality": 0.5, "short": 0.5}, packing=packing, **plain_descent | settings)
        tokenizer, lora = AutoTokenizer.from_pretrained(four_bits), LoraConfig(**LORA)
        trainer = MODPOTrainer(model, config, rows, processing_class=tokenizer, peft_config=lora)
        trainer.train()
        return trainer

    ours, theirs = train(base(four_bits), "ours"), train(plain(base(four_bits)), "theirs")
    assert log_column(ours, "loss") == pytest.approx(log_column(theirs, "loss"), rel=5e-3)
    expected = moved_weights(theirs)
    for name, found in moved_weights(ours).items():
        if "lora_B" in name:  # all zero before the first step
            assert found.abs().max() > 0, name
            torch.testing.assert_close(found, expected[name], atol=0.02 * float(expected[name].abs().max()), rtol=0.05)


def test_the_extra_names_the_package() -> None:
    """What the message advises can be followed."""
    import tomllib

    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    (line,) = project["optional-dependencies"]["quantization"]
    assert line.startswith("bitsandbytes")
