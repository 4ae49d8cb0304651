"""How long a sequence a model can read, and what is refused because it is longer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from modpo.models.positions import most_positions, vocabulary_size

SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = SMALL | {"intermediate_size": 32, "num_key_value_heads": 2}


def skeleton(kind: str, **settings: Any) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings))
    return model


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


FACTORS = [1.0] * 4
MODELS = {
    "learned": ("gpt2", {"n_positions": 96, "n_embd": 16, "n_layer": 2, "n_head": 2}, 96),
    "learned, with an offset": ("opt", SMALL | {"max_position_embeddings": 48, "ffn_dim": 16}, 48),
    "a table of sines": ("gptj", {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}, 64),
    "rotary": ("llama", LLAMA | {"max_position_embeddings": 128}, 128),
    "rotary, stretched after": ("llama", LLAMA | {"max_position_embeddings": 128} | rope("linear", factor=4.0), 512),
    "dynamic": ("llama", LLAMA | {"max_position_embeddings": 128} | rope("dynamic", factor=2.0), 256),
    "llama3": (
        "llama",
        LLAMA
        | {"max_position_embeddings": 512}
        | rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
        512,
    ),
    "yarn, counted": (
        "llama",
        LLAMA | {"max_position_embeddings": 512} | rope("yarn", factor=4.0, original_max_position_embeddings=128),
        512,
    ),
    "yarn, not counted": (
        "llama",
        LLAMA | {"max_position_embeddings": 128} | rope("yarn", factor=4.0, original_max_position_embeddings=128),
        512,
    ),
    "longrope": (
        "phi3",
        LLAMA
        | {"max_position_embeddings": 512, "original_max_position_embeddings": 64, "pad_token_id": 0}
        | rope("longrope", short_factor=FACTORS, long_factor=FACTORS, original_max_position_embeddings=64),
        512,
    ),
    "by layer": ("gemma3_text", LLAMA | {"head_dim": 8, "max_position_embeddings": 128}, 128),
    "no positions at all": ("mamba", {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2}, None),
    "a distance that costs": ("bloom", {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2}, None),
    "a distance that costs, by a setting": ("falcon", SMALL | {"alibi": True}, None),
    "a length that bounds nothing": ("nemotron_h", {"max_position_embeddings": 128}, None),
}


@pytest.mark.parametrize(("kind", "settings", "positions"), MODELS.values(), ids=MODELS)
def test_how_many_positions_a_model_has(kind: str, settings: dict[str, Any], positions: int | None) -> None:
    assert most_positions(skeleton(kind, **settings)) == positions


def test_a_model_of_learned_positions_reads_so_many_and_no_more() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=24, n_embd=16, n_layer=1, n_head=2))
    assert vocabulary_size(model) == 64
    positions = most_positions(model)
    assert positions == 24
    model(torch.zeros(1, positions, dtype=torch.long))
    with pytest.raises(IndexError):
        model(torch.zeros(1, positions + 1, dtype=torch.long))
