"""A trainer's model and tokenizer by name: as TRL loads them, and in one line where they cannot be."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import DPOConfig, DPOTrainer

from modpo.base.errors import InputError
from modpo.base.progress import say_once
from modpo.models.matmul_speed import MatmulSpeed
from modpo.training import loading
from modpo.training.config import MODPOConfig
from modpo.training.trainer import MODPOTrainer
from tests.kit import edit_json
from tests.training.runs import LORA, log_column

ROWS = Dataset.from_list(
    [{"prompt": f"Question {i}: ", "chosen": "because", "rejected": "no" * i} for i in range(1, 5)]
)
# A tokenizer and a model of a kind that only their own code knows.
OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def make(tmp_path: Path, plain_descent: dict[str, Any]) -> Callable[..., DPOTrainer]:
    def make(model: Any, kind: type[DPOTrainer] = MODPOTrainer, **given: Any) -> DPOTrainer:
        names = {"model_init_kwargs", "trust_remote_code", "pad_token", "bf16"}
        settings = plain_descent | {name: given.pop(name) for name in names & given.keys()}
        settings["output_dir"] = str(tmp_path / kind.__name__)
        args = (
            MODPOConfig(**settings, cache_dir=str(tmp_path / "cache"))
            if kind is MODPOTrainer
            else DPOConfig(**settings)
        )
        return kind(model, args=args, train_dataset=ROWS, **given)

    return make


@pytest.fixture
def in_bf16(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model in bfloat16, as checkpoints usually are."""
    folder = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def own_code(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    shutil.copytree(tiny_model, folder)
    (folder / "own.py").write_text(OWN_CODE)
    edit_json(
        folder / "config.json",
        model_type="own",
        architectures=["OwnModel"],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    )
    return folder


def test_a_model_by_name_is_float32_where_bf16_is_named(make, in_bf16: Path) -> None:
    ours, theirs = make(str(in_bf16)), make(str(in_bf16), DPOTrainer)
    assert ours.model.dtype == theirs.model.dtype == torch.float32
    for trainer in (ours, theirs):
        trainer.train()
    assert log_column(ours, "loss") == pytest.approx(log_column(theirs, "loss"), abs=1e-5)
    assert log_column(ours, "loss")[-1] < log_column(ours, "loss")[0]


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "auto"])
def test_model_init_kwargs_are_heeded_and_nothing_else_is_said(make, in_bf16: Path, dtype: Any, caplog) -> None:
    trainer = make(str(in_bf16), model_init_kwargs={"dtype": dtype})
    assert trainer.model.dtype == torch.bfloat16
    assert "already instantiated" not in caplog.text
    assert trainer.args.model_init_kwargs == {"dtype": dtype}


def test_code_of_a_model_runs_only_where_it_is_trusted(make, own_code: Path) -> None:
    with pytest.raises(InputError, match=r"^MODPOTrainer:model: .* cannot be loaded .*; fix: set trust_remote_code"):
        make(str(own_code))
    assert not any(name.startswith("transformers_modules.own") for name in sys.modules)
    assert type(make(str(own_code), trust_remote_code=True).model).__name__ == "OwnModel"


def test_the_revision_is_the_tokenizer_s_too(make, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    class Tokenizers:
        @staticmethod
        def from_pretrained(name: str, **arguments: Any) -> Any:
            asked.update(arguments)
            return AutoTokenizer.from_pretrained(name)

    monkeypatch.setattr(loading, "AutoTokenizer", Tokenizers)
    make(str(tiny_model), model_init_kwargs={"revision": "main"}, trust_remote_code=True)
    assert asked == {"revision": "main", "trust_remote_code": True}


def test_pickled_weights_are_one_line_and_read_where_they_are_asked_for(make, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    torch.save(AutoModelForCausalLM.from_pretrained(tiny_model).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"MODPOTrainer:model: .*; fix: convert it: .*'use_safetensors': False"):
        make(str(folder))
    assert make(str(folder), model_init_kwargs={"use_safetensors": False}).model.dtype == torch.float32


def test_what_cannot_be_loaded_is_one_line(make, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^MODPOTrainer:model: .*nowhere' cannot be loaded .*; fix: name a folder"):
        make(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"^MODPOTrainer:ref_model: .*nowhere' cannot be loaded"):
        make(str(tiny_model), ref_model=str(tmp_path / "nowhere"))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config._name_or_path = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"MODPOTrainer:processing_class: is left out, and .*; fix: give the model's"):
        make(model)


QUANTIZED = BitsAndBytesConfig(load_in_4bit=True)


def test_quantization_beside_a_loaded_model_is_refused(make, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(ValueError, match="MODPOTrainer:quantization_config: is given beside a model that is loaded"):
        make(model, quantization_config=QUANTIZED)
    given = {"quantization_config": QUANTIZED}
    with pytest.raises(ValueError, match=r"quantization_config: is in `args\.model_init_kwargs` too"):
        make(str(tiny_model), model_init_kwargs=given, **given)


def test_a_quantized_base_trains_adapters_or_is_one_line(make, tiny_model: Path) -> None:
    """TRL's recipe for QLoRA; without bitsandbytes it ends before anything is scored."""
    given = {"quantization_config": QUANTIZED, "peft_config": LoraConfig(**LORA), "bf16": True}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match=r"MODPOTrainer:model: .* cannot be loaded \(.*bitsandbytes"):
            make(str(tiny_model), **given)
        return
    trainer = make(str(tiny_model), **given)
    assert trainer.model.get_base_model().is_loaded_in_4bit
    trainer.train()
    assert log_column(trainer, "loss")[0] == pytest.approx(0.693147, abs=1e-3)


@pytest.mark.filterwarnings("ignore:`pad_token` is deprecated")
def test_pad_token(make, tiny_model: Path) -> None:
    ours, theirs = (make(str(tiny_model), kind, pad_token="<turn>") for kind in (MODPOTrainer, DPOTrainer))
    for trainer in (ours, theirs):
        assert trainer.processing_class.pad_token == "<turn>"
        assert trainer.model.config.pad_token_id == trainer.processing_class.pad_token_id == 1
    with pytest.raises(ValueError, match=r"MODPOConfig:pad_token: the specified `pad_token` \('<none>'\) is not found"):
        make(str(tiny_model), pad_token="<none>")


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the machine one that multiplies faster in a number format."""

    def become(dtype: str) -> None:
        speed = MatmulSpeed(bfloat16=2e11 if dtype == "bfloat16" else 1e10, float32=1e11)
        monkeypatch.setattr("modpo.models.matmul_speed._measured", lambda where: speed)

    return become


def test_without_bf16_the_faster_format_is_chosen(make, in_bf16: Path, faster, capsys) -> None:
    """Adapters alone are trained, so the model is read in it too; all losses are TRL's with these settings named."""
    say_once.cache_clear()
    faster("bfloat16")
    ours = make(str(in_bf16), bf16=None, peft_config=LoraConfig(**LORA))
    said = "MODPOConfig: bf16 is left out, so it is True: bfloat16 is 2 times as fast as float32 here"
    assert said in capsys.readouterr().err.splitlines()
    named = {"bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}}
    theirs = make(str(in_bf16), DPOTrainer, peft_config=LoraConfig(**LORA), **named)
    for trainer in (ours, theirs):
        base = trainer.model.get_base_model()
        assert (base.dtype, trainer.accelerator.mixed_precision) == (torch.bfloat16, "bf16")
        assert {p.dtype for p in base.parameters() if p.requires_grad} == {torch.float32}
        trainer.train()
    assert log_column(ours, "loss") == pytest.approx(log_column(theirs, "loss"), abs=0.02)


def test_where_float32_is_faster_nothing_is_cast(make, in_bf16: Path, faster) -> None:
    faster("float32")
    ours = make(str(in_bf16), bf16=None, peft_config=LoraConfig(**LORA))
    theirs = make(str(in_bf16), DPOTrainer, peft_config=LoraConfig(**LORA), bf16=False)
    for trainer in (ours, theirs):
        assert (trainer.model.dtype, trainer.accelerator.mixed_precision) == (torch.float32, "no")
        trainer.train()
    assert log_column(ours, "loss") == pytest.approx(log_column(theirs, "loss"), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ({"bf16": None}, torch.float32),  # all weights are trained
        ({"bf16": None, "peft_config": {"modules_to_save": ["lm_head"]}}, torch.float32),
        ({"bf16": None, "peft_config": {"init_lora_weights": "pissa"}}, torch.float32),
        ({"bf16": True, "peft_config": {}}, torch.float32),  # as in TRL
        ({"bf16": None, "peft_config": {}, "model_init_kwargs": {"dtype": "float32"}}, torch.float32),
        ({"bf16": None, "peft_config": {}}, torch.bfloat16),
    ],
)
def test_weights_that_are_trained_and_what_is_named_stay_as_in_trl(make, in_bf16, faster, given, dtype) -> None:
    faster("bfloat16")
    if "peft_config" in given:
        given = given | {"peft_config": LoraConfig(**(LORA | given["peft_config"]))}
    trainer = make(str(in_bf16), **given)
    assert trainer.model.dtype == dtype
    assert trainer.accelerator.mixed_precision == "bf16"


def test_a_reference_by_name_is_read_in_the_policy_s_format(make, in_bf16: Path, tiny_model: Path, faster) -> None:
    faster("bfloat16")
    trainer = make(str(in_bf16), bf16=None, peft_config=LoraConfig(**LORA), ref_model=str(tiny_model))
    assert trainer.ref_model.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reference_by_name_is_read_as_a_loaded_policy_is(make, in_bf16: Path, faster, dtype: torch.dtype) -> None:
    """Read otherwise, its log-probs would be apart from the policy's by rounding alone, at step 0 too."""
    faster("bfloat16")
    policy = AutoModelForCausalLM.from_pretrained(in_bf16, dtype=dtype)
    trainer = make(policy, bf16=None, peft_config=LoraConfig(**LORA), ref_model=str(in_bf16))
    assert trainer.ref_model.dtype == trainer.model.dtype == dtype
    trainer.train()
    assert log_column(trainer, "loss")[0] == pytest.approx(0.693147, abs=1e-5)


def test_a_copy_of_the_settings_chooses_the_same(tmp_path: Path, faster) -> None:
    """Also where it chose otherwise than another machine, and not where a format is named in the copy."""
    faster("bfloat16")
    args = MODPOConfig(output_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    copied = replace(args, learning_rate=1e-3)
    copied = replace(copied, learning_rate=1e-2)
    assert (copied.chooses_dtype, copied.bf16) == (args.chooses_dtype, args.bf16) == (True, True)
    for named in ({"bf16": False}, {"bf16": False, "fp16": True}):
        assert not replace(args, **named).chooses_dtype
    assert (replace(args, fp16=True).bf16, replace(args, fp16=True).chooses_dtype) == (False, False)
    assert not replace(MODPOConfig(output_dir=str(tmp_path), bf16=True), learning_rate=1e-3).chooses_dtype
