"""Tiny random models under the names of TRL's, in the layout of the Hub's cache; their tokenizer has a token a byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

REVISION = "0" * 40  # the Hub's cache names a model's files after a commit

SPECIAL = {"pad_token": "<|pad|>", "eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}
TURN = "<|im_start|>"

CHAT_ML = """\
{%- if tools %}{{ '<|im_start|>system\nTools: ' + tools | tojson + '<|im_end|>\n' }}{% endif -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}
{%- for call in m.tool_calls or [] %}{{ '<call>' + call.function | tojson + '</call>' }}{% endfor -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
# With what the rows named "harmony" bring: an effort that the row asks for, and thoughts before the answer.
HARMONY = """\
{{- '<|im_start|>system\nReasoning: ' + (reasoning_effort or 'medium') + '<|im_end|>' -}}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- if m.thinking %}{{ '<|im_start|>assistant<|analysis|>' + m.thinking + '<|end|>' }}{% endif -%}
{{ '<|im_start|>assistant<|final|>' + m.content + '<|im_end|>' }}
{%- else -%}
{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif -%}
"""

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
HYBRID = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
    "ssm_state_size": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 4,
    "n_groups": 1,
    "chunk_size": 16,
    "n_routed_experts": 2,
    "moe_shared_expert_intermediate_size": 16,
}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny-Cohere2ForCausalLM": ("cohere2", {}),
    "tiny-Glm4MoeForCausalLM": (
        "glm4_moe",
        EXPERTS | {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "head_dim": 8},
    ),
    "tiny-GptOssForCausalLM": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    "tiny-Qwen2ForCausalLM-2.5": ("qwen2", {}),
    "tiny-Qwen3MoeForCausalLM": ("qwen3_moe", EXPERTS | {"num_experts": 4, "head_dim": 8}),
    "tiny-NemotronHForCausalLM-nano": ("nemotron_h", EXPERTS | HYBRID | {"head_dim": 8}),
    "tiny-Olmo3ForCausalLM": ("olmo3", {}),
    "tiny-Lfm2ForCausalLM": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "tiny-Lfm2ForCausalLM-2.5": ("lfm2", {"layer_types": ["full_attention", "conv"], "block_multiple_of": 8}),
}
TEMPLATES = {"tiny-GptOssForCausalLM": HARMONY}

# A model whose class comes with its files, as `trust_remote_code` is there for.
REMOTE = "tiny-RemoteForCausalLM"
REMOTE_CODE = """\
from transformers import Qwen2Config, Qwen2ForCausalLM


class RemoteConfig(Qwen2Config):
    model_type = "remote"


class RemoteForCausalLM(Qwen2ForCausalLM):
    config_class = RemoteConfig
"""
REMOTE_CONFIG = {
    "model_type": "remote",
    "architectures": ["RemoteForCausalLM"],
    "auto_map": {"AutoConfig": "remote.RemoteConfig", "AutoModelForCausalLM": "remote.RemoteForCausalLM"},
}


def write_models(cache: Path, owner: str) -> None:
    """Each model with its tokenizer, in bfloat16 as most models are published."""
    for name, (kind, size) in SIZES.items():
        _published(cache, owner, name, partial(_write_model, kind=kind, size=size))
    _published(cache, owner, REMOTE, _write_remote)


def _published(cache: Path, owner: str, name: str, write: Callable[[Path], None]) -> None:
    """Have the files written to where a download from the Hub would have put them."""
    model = cache / f"models--{owner}--{name}"
    files = model / "snapshots" / REVISION
    files.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(REVISION)
    write(files)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATES.get(name, CHAT_ML)
    tokenizer.save_pretrained(files)


def _write_model(folder: Path, kind: str, size: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=32,
        num_hidden_layers=len(size.get("layers_block_type", "ab")),
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,  # with the usual 0.02, gradients of models this small vanish in bfloat16
        **{f"{token}_id": getattr(tokenizer, f"{token}_id") for token in SPECIAL},
        **size,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def _write_remote(folder: Path) -> None:
    _write_model(folder, "qwen2", {})
    (folder / "remote.py").write_text(REMOTE_CODE)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | REMOTE_CONFIG))


def byte_tokenizer() -> Any:
    """A tokenizer that reads every text and knows 256 bytes and a few special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [*SPECIAL.values(), TURN]
    vocabulary = {piece: n for n, piece in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
