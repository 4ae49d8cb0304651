"""Adapters added up: against the dense product, against PEFT, and in memory by scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from modpo.base.errors import InputError
from modpo.models.combine import combine_adapters, read_adapter, steer
from modpo.training.continuous import adapter_names
from tests.kit import edit_json
from tests.models.adapters import base, dense, load_policy, logps, make_adapter


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three that differ in rank, alpha and in how the scale comes from these."""
    root = tmp_path_factory.mktemp("adapters")
    settings: list[dict[str, Any]] = [{}, {"r": 3, "lora_alpha": 5}, {"r": 9, "lora_alpha": 2, "use_rslora": True}]
    return [make_adapter(tiny_model, root / str(n), seed=n, **s) for n, s in enumerate(settings)]


# --- the sum --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coefficients", [(1.0, 0.0, 0.0), (0.2, 0.5, 0.3), (1.5, -0.5, 0.0), (-1.0, 2.0, 3.0)])
def test_the_sum_is_exact(adapters: list[Path], tmp_path: Path, coefficients: tuple[float, ...]):
    assert combine_adapters(dict(zip(adapters, coefficients, strict=True)), tmp_path / "sum") == 0
    found, parts = dense(tmp_path / "sum"), [dense(folder) for folder in adapters]
    assert found.keys() == parts[0].keys()
    assert len(found) == 14  # 2 layers of 7
    for module, update in found.items():
        expected = sum(c * part[module] for c, part in zip(coefficients, parts, strict=True))
        torch.testing.assert_close(update, expected, rtol=1e-5, atol=1e-7)
    config = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    ranks = (4, 3, 9)
    assert config["r"] == config["lora_alpha"] == sum(r for r, c in zip(ranks, coefficients, strict=True) if c)


def test_peft_loads_the_sum(tiny_model: Path, adapters: list[Path], tmp_path: Path):
    """Its log-probs are those of a model with the dense sum added to its weights."""
    shares = [0.2, 0.5, 0.3]
    combine_adapters(dict(zip(adapters, shares, strict=True)), tmp_path / "sum")
    loaded = PeftModel.from_pretrained(base(tiny_model), tmp_path / "sum")
    plain = base(tiny_model)
    for share, folder in zip(shares, adapters, strict=True):
        for module, update in dense(folder).items():
            plain.get_submodule(module.removeprefix("base_model.model.")).weight.data += (share * update).float()
    torch.testing.assert_close(logps(loaded), logps(plain), rtol=0, atol=1e-4)
    assert (logps(plain) - logps(base(tiny_model))).abs().max() > 0.1


@pytest.mark.parametrize(
    "weights",
    [{"a": 0.7, "b": 0.3}, {"a": 1.0, "b": 0.0}, {"a": 0.2, "b": 0.3, "c": 0.5}, {"a": 0.0, "b": 0.4, "c": 0.6}],
)
def test_continuous_form_at_w_against_the_baked_adapter(tiny_model: Path, tmp_path: Path, weights: dict[str, float]):
    """One adapter per objective, steered by scale, has the log-probs of the sum that plain PEFT loads."""
    for n, name in enumerate(weights):
        make_adapter(tiny_model, tmp_path / "policy" / name, seed=n)
    policy = load_policy(base(tiny_model), tmp_path / "policy", list(weights))
    steer(policy, {adapter: weights[name] for name, adapter in adapter_names(list(weights)).items()})
    combine_adapters({tmp_path / "policy" / name: weight for name, weight in weights.items()}, tmp_path / "baked")
    baked = PeftModel.from_pretrained(base(tiny_model), tmp_path / "baked")
    torch.testing.assert_close(logps(policy), logps(baked), rtol=0, atol=1e-4)
    assert (logps(policy) - logps(base(tiny_model))).abs().max() > 0.1


def test_steering_there_and_back(tiny_model: Path, tmp_path: Path):
    for n, name in enumerate("ab"):
        make_adapter(tiny_model, tmp_path / name, seed=n)
    policy = load_policy(base(tiny_model), tmp_path, ["a", "b"])
    steer(policy, {"default": 0.5, "objective_1": 0.5})
    before = logps(policy)
    steer(policy, {"default": 0.1, "objective_1": 0.9})
    assert (logps(policy) - before).abs().max() > 0.01
    steer(policy, {"default": 0.0, "objective_1": 0.0})
    torch.testing.assert_close(logps(policy), logps(base(tiny_model)), rtol=0, atol=1e-5)
    steer(policy, {"default": 0.5, "objective_1": 0.5})
    assert torch.equal(logps(policy), before)


def test_the_trap_in_peft(tiny_model: Path, tmp_path: Path):
    """PEFT's `linear` adds A's and B's apart, and is another update; its `cat` is ours."""
    folders = {name: make_adapter(tiny_model, tmp_path / name, seed=n) for n, name in enumerate("ab")}
    combine_adapters({folders["a"]: 0.4, folders["b"]: 0.6}, tmp_path / "ours")
    model = PeftModel.from_pretrained(base(tiny_model), folders["a"], adapter_name="a")
    model.load_adapter(folders["b"], adapter_name="b")
    for kind in ("linear", "cat"):
        model.add_weighted_adapter(["a", "b"], [0.4, 0.6], kind, combination_type=kind)
    ours = dense(tmp_path / "ours")
    layers = {name.removesuffix(".lora_A"): None for name, _ in model.named_modules() if name.endswith(".lora_A")}
    assert layers.keys() == ours.keys()
    for name in layers:
        layer, exact = model.get_submodule(name), ours[name].float()
        off = {kind: (layer.get_delta_weight(kind) - exact).norm() / exact.norm() for kind in ("linear", "cat")}
        assert off["cat"] < 1e-5
        assert off["linear"] > 0.3


# --- a smaller rank -------------------------------------------------------------------------------------------


def relative_error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    off = sum(float((found[m] - exact[m]).square().sum()) for m in exact)
    return (off / sum(float(update.square().sum()) for update in exact.values())) ** 0.5


def test_compression_tells_its_error_and_is_the_best_there_is(adapters: list[Path], tmp_path: Path):
    shares = dict(zip(adapters, (0.2, 0.5, 0.3), strict=True))
    exact = {m: sum(c * dense(f)[m] for f, c in shares.items()) for m in dense(adapters[0])}
    singular = {m: torch.linalg.svdvals(update) for m, update in exact.items()}
    norm = sum(float(s.square().sum()) for s in singular.values())
    errors = []
    for rank in (1, 2, 6, 12, 15):
        errors.append(combine_adapters(shares, tmp_path / str(rank), rank=rank))
        found = dense(tmp_path / str(rank))
        assert errors[-1] == pytest.approx(relative_error(found, exact), rel=1e-4)
        best = (sum(float(s[rank:].square().sum()) for s in singular.values()) / norm) ** 0.5
        assert errors[-1] == pytest.approx(best, rel=1e-4)
        assert json.loads((tmp_path / str(rank) / "adapter_config.json").read_text())["r"] == rank
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.3
    assert errors[-1] > 0.001
    for rank in (16, 17, 500):  # 4 + 3 + 9
        assert combine_adapters(shares, tmp_path / "full", rank=rank) == 0
        assert relative_error(dense(tmp_path / "full"), exact) < 1e-6


def test_a_module_smaller_than_the_rank(tiny_model: Path, tmp_path: Path):
    """k_proj is (32, 64): of rank 32 at most, where 3 adapters of rank 16 bring 48 and 40 are asked for."""
    folders = [make_adapter(tiny_model, tmp_path / str(n), seed=n, r=16) for n in range(3)]
    shares = {folder: 1 / 3 for folder in folders}
    error = combine_adapters(shares, tmp_path / "small", rank=40)
    exact = {m: sum(dense(f)[m] for f in folders) / 3 for m in dense(folders[0])}
    found = dense(tmp_path / "small")
    assert error == pytest.approx(relative_error(found, exact), rel=1e-4)
    k_proj = next(m for m in exact if m.endswith("k_proj"))
    torch.testing.assert_close(found[k_proj], exact[k_proj], rtol=1e-4, atol=1e-6)
    state = load_file(tmp_path / "small" / "adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in state.items() if "lora_A" in name} == {40}
    assert logps(PeftModel.from_pretrained(base(tiny_model), tmp_path / "small")).isfinite().all()


# --- what it refuses --------------------------------------------------------------------------------------------


def change_config(folder: Path, **changes: Any) -> None:
    edit_json(folder / "adapter_config.json", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "sets use_dora; fix: only plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 8}}, "sets rank_pattern, alpha_pattern"),
        ({"bias": "all"}, "trains biases (bias: all)"),
        ({"init_lora_weights": "pissa"}, "changes its base (init_lora_weights: pissa)"),
        ({"peft_type": "LOHA"}, "is of type LOHA"),
        ({"r": 0}, "has no r and lora_alpha above 0"),
        ({"lora_alpha": None}, "has no r and lora_alpha above 0"),
    ],
)
def test_what_is_more_than_b_a_is_refused(tiny_model: Path, tmp_path: Path, changes: dict[str, Any], message: str):
    good, odd = (make_adapter(tiny_model, tmp_path / name, seed=0) for name in ("good", "odd"))
    change_config(odd, **changes)
    with pytest.raises(InputError) as caught:
        combine_adapters({good: 0.5, odd: 0.5}, tmp_path / "sum")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{odd}:adapter_config.json: ")
    assert not (tmp_path / "sum").exists()


def test_real_adapters_that_are_more_than_b_a(tiny_model: Path, tmp_path: Path):
    """As PEFT writes them, not as a test changed them."""
    settings: dict[str, dict[str, Any]] = {
        "dora": {"use_dora": True},
        "saved": {"modules_to_save": ["lm_head"]},
        "bias": {"bias": "all"},
        "pattern": {"rank_pattern": {"q_proj": 8}},
        "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    }
    for name, odd in settings.items():
        with pytest.raises(InputError):
            read_adapter(make_adapter(tiny_model, tmp_path / name, seed=0, **odd))


def test_adapters_of_other_modules_are_refused(tiny_model: Path, adapters: list[Path], tmp_path: Path):
    other = make_adapter(tiny_model, tmp_path / "other", seed=0, target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"other:adapter_config.json: adapts other modules than the first"):
        combine_adapters({adapters[0]: 0.5, other: 0.5}, tmp_path / "sum")
    wide = make_adapter(tiny_model, tmp_path / "wide", seed=0)
    state = load_file(wide / "adapter_model.safetensors")
    name = next(name for name in state if "q_proj.lora_A" in name)
    save_file({**state, name: torch.zeros(4, 128)}, wide / "adapter_model.safetensors")
    with pytest.raises(InputError, match="one base with the same target_modules"):
        combine_adapters({adapters[0]: 0.5, wide: 0.5}, tmp_path / "sum")


def test_missing_and_damaged_files_are_refused(tiny_model: Path, adapters: list[Path], tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere: has no adapter_config.json and adapter_model.safetensors"):
        combine_adapters({adapters[0]: 0.5, tmp_path / "nowhere": 0.5}, tmp_path / "sum")
    broken = make_adapter(tiny_model, tmp_path / "broken", seed=0)
    (broken / "adapter_model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(InputError, match=r"adapter_model.safetensors: cannot be read"):
        combine_adapters({broken: 1.0}, tmp_path / "sum")
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        combine_adapters({broken: 1.0}, tmp_path / "sum")


def test_nothing_to_add_up(adapters: list[Path], tmp_path: Path):
    with pytest.raises(InputError, match="coefficients: are all 0"):
        combine_adapters({adapters[0]: 0.0}, tmp_path / "sum")
    with pytest.raises(InputError, match="rank: is 0; fix: give at least 1"):
        combine_adapters({adapters[0]: 1.0}, tmp_path / "sum", rank=0)
