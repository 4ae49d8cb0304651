"""What benchmarks/scale.py trains on: made rows of any number, and a tiny model with a tokenizer that fits them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ANSWERS = 4  # to a prompt, in rows of groups
VOCABULARY = 1000  # tokens
SYLLABLES = ("ba", "den", "fo", "gri", "ka", "lum", "mi", "nor", "pe", "ros", "tul", "ve")
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]


def group_rows(answers: int) -> Iterator[dict[str, Any]]:
    """A prompt a row with four answers, a number for each of them, and two pairs."""
    rng = random.Random(0)
    for number in range(answers // ANSWERS):
        liked = [round(rng.gauss(0, 1), 3) for _ in range(ANSWERS)]
        pairs = [[a, b] if liked[a] > liked[b] else [b, a] for a, b in ((0, 1), (2, 3))]
        answered = [_words(rng, 3, 20) for _ in range(ANSWERS)]
        yield {"prompt": _prompt(rng, number), "responses": answered, "pairs": pairs, "liked": liked}


def pair_rows(answers: int) -> Iterator[dict[str, Any]]:
    """Rows as TRL knows them, two answers each; every second prompt has two rows."""
    rng, prompt = random.Random(0), ""
    for number in range(answers // 2):
        prompt = prompt if number % 3 == 1 else _prompt(rng, number)
        numbers = sorted(round(rng.gauss(0, 1), 3) for _ in range(2))
        yield {
            "prompt": prompt,
            "chosen": _words(rng, 3, 20),
            "rejected": _words(rng, 3, 20),
            "chosen_liked": numbers[1],
            "rejected_liked": numbers[0],
        }


LAYOUTS = {"groups": group_rows, "pairs": pair_rows}


def write_rows(path: Path, layout: str, answers: int) -> None:
    """So many answers as lines of JSON."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in LAYOUTS[layout](answers))


def _prompt(rng: random.Random, number: int) -> str:
    return f"{number}: {_words(rng, 5, 25)}?\n"


def _words(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))


def build_model(folder: Path) -> None:
    """A folder that `from_pretrained` reads: float32 Llama of 2 layers, 64 wide, a byte-level BPE of the words."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = [AddedToken(token, special=True, normalized=False) for token in ("<eos>", "<pad>")]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator((json.dumps(row) for row in group_rows(4000)), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
