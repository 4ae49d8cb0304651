"""A model that needs no download: random weights in SmolLM2-135M's shape, and a tokenizer of the benchmarks' words.

Values, speed and memory depend on a model's shape alone; what a policy learns does not show on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.preference_rows import qa_rows, single_pair_rows

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
SMALL_SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = Path(__file__).parents[2] / "src" / "modpo" / "quickstart" / "prompts.jsonl"


def make_stand_in(folder: Path, *, small: bool) -> Path:
    """A folder that `from_pretrained` reads, bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SMALL_SHAPE if small else SHAPE
    tokenizer = _tokenizer(min(4000, shape["vocab_size"]))
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        max_position_embeddings=8192,
        initializer_range=0.1,  # wide enough that some tokens are likelier than others
        tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(size: int) -> Any:
    """Byte-level BPE, learnt from the benchmarks' rows and the demo's prompts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _texts() -> Iterator[str]:
    for row in [*qa_rows(None, 2), *single_pair_rows(None, 32)]:
        yield from row.values()
    for line in PROMPTS.read_text("utf-8").splitlines():
        yield str(json.loads(line)["prompt"])
