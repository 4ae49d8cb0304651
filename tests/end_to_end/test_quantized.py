"""A base in 4 bit: trained, measured and merged from the command line, with gradients that are right on a CPU too."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from modpo.base.errors import EnvironmentFault, InputError
from modpo.cli import main
from modpo.experiment.sections import ModelSection
from modpo.forward.logprobs import padded_logps
from modpo.forward.policy import Policy
from modpo.models.adapters import merged_adapters
from modpo.models.quantized import dequantized, is_quantized, keep_differentiable
from modpo.models.reference import ReferenceModel
from modpo.training.model_checks import require_trainable
from tests.kit import edit_json, errors, preference_rows, write_experiment, write_rows

PROMPTS, RESPONSES = [[40, 41, 42, 43], [50, 51]], [[[60, 61, 62], [70, 71]], [[80, 81, 82, 83, 84]]]

there = importlib.util.find_spec("bitsandbytes") is not None
with_bitsandbytes = pytest.mark.skipif(not there, reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def four_bit(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model with its linear layers in 4 bit."""
    from transformers import BitsAndBytesConfig

    folder = tmp_path_factory.mktemp("four_bit") / "model"
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=settings).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def reference(folder: Path) -> ReferenceModel:
    return ReferenceModel(ModelSection(str(folder), dtype="float32"), Path("unused"))


@torch.no_grad()
def logps(model: Any) -> list[float]:
    return padded_logps(model.eval(), PROMPTS, RESPONSES).tolist()


def with_adapter(model: PreTrainedModel, **settings: Any) -> PeftModel:
    """The model with an adapter that changes it."""
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False, **settings)
    return get_peft_model(model, config)


@with_bitsandbytes
def test_a_sweep_is_trained_measured_and_merged(four_bit: Path, tmp_path: Path, capsys: Any) -> None:
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    assert main(["sweep", str(write_experiment(tmp_path, four_bit))]) == 0
    points = json.loads((tmp_path / "run" / "front.json").read_text())["points"]
    assert len(points) == 2
    point = tmp_path / "run" / points[0]["adapter"]
    weights = ",".join(f"{name}={weight}" for name, weight in points[0]["weights"].items())
    bake = ["bake", str(tmp_path / "run"), "--weights", weights]
    assert main([*bake, "--output", str(tmp_path / "adapter")]) == 0
    assert main([*bake, "--output", str(tmp_path / "whole"), "--merge"]) == 0
    assert "the base is quantised; a merged policy is not" in capsys.readouterr().err

    base = reference(four_bit).model
    expected = logps(PeftModel.from_pretrained(base, point, autocast_adapter_dtype=False))
    assert logps(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")) == pytest.approx(expected, abs=1e-3)
    baked = PeftModel.from_pretrained(reference(four_bit).model, tmp_path / "adapter", autocast_adapter_dtype=False)
    assert logps(baked) == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(logps(reference(four_bit).model), abs=1e-2)


@with_bitsandbytes
@pytest.mark.parametrize("read_before", [False, True])
def test_gradients_are_those_of_whole_weights(four_bit: Path, read_before: bool) -> None:
    """Read without a gradient first, as scoring does: on a CPU bitsandbytes would pass none from then on."""
    ours, whole = reference(four_bit).model, dequantized(reference(four_bit).model)
    if read_before:
        assert logps(ours) == pytest.approx(logps(whole), abs=1e-4)
    gradients = []
    for model in (ours, whole):
        adapted = with_adapter(model).train()
        padded_logps(adapted, PROMPTS, RESPONSES).sum().backward()
        gradients.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@with_bitsandbytes
def test_a_policy_is_never_merged_into_4_bit(four_bit: Path, tmp_path: Path) -> None:
    adapted = with_adapter(reference(four_bit).model)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = logps(adapted)
    with Policy(reference(four_bit), tmp_path / "adapter").loaded(merged=True) as policy:
        assert is_quantized(policy)
        assert logps(policy) == pytest.approx(expected, abs=1e-4)
    merged = merged_adapters(adapted)
    assert not is_quantized(merged)
    assert logps(merged) == pytest.approx(expected, abs=1e-3)
    merged.save_pretrained(tmp_path / "merged")
    assert logps(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")) == pytest.approx(expected, abs=1e-3)


@with_bitsandbytes
def test_what_bitsandbytes_has_made_ready_for_inference_is_not_trained(four_bit: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(four_bit)
    logps(model)
    layouts = {getattr(m.weight.quant_state, "packing_format_for_cpu", False) for m in model.modules() if _is_4_bit(m)}
    if layouts != {True}:
        pytest.skip("bitsandbytes keeps the layout on this machine")
    with pytest.raises(EnvironmentFault, match="passes no gradient since; fix: load it anew"):
        require_trainable(model, LoraConfig(task_type="CAUSAL_LM"))


def _is_4_bit(module: Any) -> bool:
    return hasattr(getattr(module, "weight", None), "quant_state")


@with_bitsandbytes
def test_whole_weights_in_4_bit_are_refused(four_bit: Path, tmp_path: Path, capsys: Any) -> None:
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    assert main(["sweep", str(write_experiment(tmp_path, four_bit, lora="null"))]) == 2
    (line,) = errors(capsys.readouterr().err)
    assert "experiment.yaml:2:lora: is null, but the weights of" in line
    model = AutoModelForCausalLM.from_pretrained(four_bit)
    with pytest.raises(InputError, match="weights are quantised, and cannot be trained; fix: give `peft_config`"):
        require_trainable(model, None)
    keep_differentiable(model)
    require_trainable(model, LoraConfig(task_type="CAUSAL_LM"))


METHODS = [  # what needs something that is not installed
    pytest.param({"quant_method": "bitsandbytes", "load_in_4bit": True}, "modpo[quantization]", id="bitsandbytes"),
    pytest.param({"quant_method": "hqq", "quant_config": {}}, "install what it needs", id="hqq"),
]


@pytest.mark.parametrize("command", ["inspect", "score", "sweep"])
@pytest.mark.parametrize(("settings", "fix"), METHODS)
def test_what_is_not_installed_is_said_before_any_work(
    tiny_model: Path, tmp_path: Path, capsys: Any, settings: dict[str, Any], fix: str, command: str
) -> None:
    if there and settings["quant_method"] == "bitsandbytes":
        pytest.skip("bitsandbytes is installed")
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    edit_json(folder / "config.json", quantization_config=settings)
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    assert main([command, str(write_experiment(tmp_path, folder))]) == 3
    (line,) = errors(capsys.readouterr().err)
    assert f"experiment.yaml:1:model_name_or_path: {folder} is quantised by {settings['quant_method']}" in line
    assert fix in line
    assert not (tmp_path / "run").exists()
