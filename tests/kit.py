"""What many tests share: words and rows, a tiny model, a tiny experiment, a finished sweep, and what a run said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WORDS = ("sun", "sea", "rain", "road", "tea", "song", "book", "tree")

# --- rows ---------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """The rows as lines of JSON."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: str | Path | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(str(path)).read_text("utf-8").splitlines()]


def preference_rows(prompts: int = 10) -> list[dict[str, Any]]:
    """Two pairs a prompt; the chosen answer is the friendlier one, and the longer one half of the time."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows = []
    for i in range(prompts):
        word = WORDS[i % len(WORDS)]
        for extra in (0, 1):
            chosen = f"good {word}" + " and more" * int(rng.integers(0, 2)) + "!" * extra
            rejected = f"bad {word}" + " and more" * int(rng.integers(0, 2)) + "?" * extra
            rows.append({"prompt": f"{i}: the {word}? ", "chosen": chosen, "rejected": rejected})
    return rows


def prompt_rows(words: Iterable[str] = WORDS) -> list[dict[str, Any]]:
    """A prompt a word, without answers."""
    return [{"prompt": f"{i}: the {word}? "} for i, word in enumerate(words)]


# --- a model ------------------------------------------------------------------------------------------------

CHAT_TEMPLATE = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def build_model(folder: Path) -> Path:
    """A folder that `from_pretrained` reads: float32 Llama of 2 layers, 64 wide, one token a byte."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<eos>", "<turn>", "<pad>"]
    vocabulary = {piece: n for n, piece in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = CHAT_TEMPLATE

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=vocabulary["<eos>"],
        pad_token_id=vocabulary["<pad>"],
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- an experiment ------------------------------------------------------------------------------------------

SECTIONS = {
    "model": "{model_name_or_path: MODEL, dtype: float32}",
    "lora": "{r: 4}",
    "data": "{path: FOLDER/rows.jsonl, eval_prompts: 3, max_length: 64}",
    "objectives": """
  kind: {pairs: data}
  concise: {reward: modpo.rewards.text:word_count, maximize: false, scale: 0.5, unit: words}""",
    "training": "{per_device_train_batch_size: 4, learning_rate: 1e-2}",
    "sweep": "{grid: 2}",
    "evaluation": "{max_new_tokens: 8, bootstrap: 50}",
    "output_dir": "FOLDER/run",
    "cache_dir": "FOLDER/cache",
}
SAMPLE = "{prompts: FOLDER/prompts.jsonl, held_out: 3, responses_per_prompt: 3, max_new_tokens: 8}"
SAMPLED_DATA = "{path: FOLDER/rows.jsonl, eval_path: FOLDER/held_out.jsonl, eval_format: prompts, max_length: 64}"


def write_experiment(folder: Path, model: Path, **sections: str | None) -> Path:
    """FOLDER/experiment.yaml with SECTIONS; `sections` replace some, add others, and with None leave one out.

    FOLDER and MODEL in a section stand for the paths. The rows are the caller's to write.
    """
    given = {name: text for name, text in (SECTIONS | sections).items() if text is not None}
    text = "".join(f"{name}: {text}\n" for name, text in given.items())
    path = folder / "experiment.yaml"
    path.write_text(text.replace("FOLDER", str(folder)).replace("MODEL", str(model)))
    return path


def copy_sweep(finished: Path, folder: Path) -> Path:
    """A copy of a finished sweep that a test may change; its experiment file, whose data stay where they are."""
    for name in ("run", "cache"):
        shutil.copytree(finished / name, folder / name)
    path = folder / "experiment.yaml"
    text = (finished / "experiment.yaml").read_text()
    for name in ("output_dir", "cache_dir"):
        text = text.replace(f"{name}: {finished}", f"{name}: {folder}")
    path.write_text(text)
    return path


def at(kind: float) -> dict[str, float]:
    """A vector of the two objectives of SECTIONS."""
    return {"kind": kind, "concise": 1 - kind}


# --- damage -------------------------------------------------------------------------------------------------


def flip_a_bit(path: Path, at: int = -3) -> None:
    """The lowest bit of one byte; the last bytes of weights are numbers of a tensor."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edit_json(path: Path, **changes: Any) -> None:
    """The object of a file with other values for some of its keys."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- what a run left behind ---------------------------------------------------------------------------------


def manifest_of(folder: Path) -> dict[str, Any]:
    from modpo.base.files import read_manifest

    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def times(folder: Path) -> dict[str, int]:
    """When each file was written, in nanoseconds."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def errors(said: str) -> list[str]:
    """The lines of a command's standard error that begin with "error: "."""
    return [line for line in said.splitlines() if line.startswith("error: ")]
