"""Random models of two layers, of the kinds that read packed rows."""

from __future__ import annotations

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 48
MLA = {  # heads of 16 numbers for queries and keys, of 12 for values
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 4,  # all: which experts are chosen does not turn on rounding
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
PACKABLE: dict[str, dict] = {
    "Llama": {"num_key_value_heads": 2},
    "Qwen2": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "GPTNeoX": {},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "Phi": {},  # its head has a bias
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "DeepseekV2": MLA,
    "DeepseekV3": MLA | {"n_group": 1, "topk_group": 1},
}


def build(name: str, **settings) -> PreTrainedModel:
    """A random model of 2 layers, with weights so large that attention matters to the log-probs."""
    small = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 640,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = getattr(transformers, f"{name}Config")(**(small | settings))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()
