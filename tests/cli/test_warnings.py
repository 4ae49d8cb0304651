"""What libraries warn of: quiet where nobody has to do anything, one line where somebody may."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from modpo.base.progress import say_once
from modpo.cli import main
from tests.kit import preference_rows, write_experiment, write_rows


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own() -> Iterator[None]:
    """pytest catches warnings; here they go where they go at the command line."""
    say_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


def save(model: torch.nn.Module, tiny_model: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_pefts_choices_for_gpt_2_are_quiet(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=1, n_head=2, eos_token_id=0)
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    file = write_experiment(tmp_path, save(GPT2LMHeadModel(config), tiny_model, tmp_path / "gpt2"))
    assert main(["train", str(file), "--weights", "kind=0.5,concise=0.5"]) == 0
    assert "fan_in_fan_out" not in capsys.readouterr().err


def test_each_word_of_tied_weights_in_an_adapter_is_said_once_in_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=300, tie_word_embeddings=True, eos_token_id=0, **sizes)
    write_rows(tmp_path / "rows.jsonl", preference_rows())
    lora = "{r: 2, target_modules: [q_proj, embed_tokens]}"
    file = write_experiment(tmp_path, save(LlamaForCausalLM(config), tiny_model, tmp_path / "tied"), lora=lora)
    assert main(["sweep", str(file)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "tie_word_embeddings" in line]
    assert said
    assert len(said) == len(set(said))
    assert all(line.startswith("warning: PEFT: Model ") for line in said)
