"""Language models on disk: found, checked, fingerprinted, read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.errors import InputError, Problem
from modpo.base.files import sha256_file
from modpo.base.progress import say, working
from modpo.base.text import first_line
from modpo.experiment.sections import LoraSection, ModelSection
from modpo.models.quantized import keep_differentiable, require_quantizer

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "smollm2-135m-instruct"
FIELD = "model_name_or_path"  # what names a model, where an error does not say otherwise
ADAPTER_CONFIG = "adapter_config.json"
TRAINING_LOG = "training_log.json"  # beside a trained model; decides no number
# Settings of a model's configuration that say where it came from, not what it computes.
PROVENANCE = (
    "_name_or_path",
    "_model_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
)
OWN_WEIGHTS = re.compile(r"[^/\\]+\.safetensors(\.index\.json)?")
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")  # settings that may name a kernel of the Hub


def default_cache_dir() -> Path:
    """Where models and scored columns are kept: `$MODPO_CACHE`, else `~/.cache/modpo`."""
    return Path(os.environ.get("MODPO_CACHE") or Path.home() / ".cache" / "modpo")


def device() -> str:
    """The device that single-process work runs on."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator is not None else "cpu"


# --- finding ------------------------------------------------------------------------------------------------


def find_folder(section: ModelSection, cache_dir: Path, where: str, field: str = FIELD) -> Path:
    """The local folder of a model or an adapter: as given, the embedded default, or a snapshot from the Hub.

    Raises:
        InputError: it is neither here nor to be had.
    """
    name = section.model_name_or_path
    if name.lower() == EMBEDDED:
        from modpo.models.embedded import fetch_model

        return fetch_model(cache_dir, progress=say)
    local = Path(name).expanduser()
    return local if local.is_dir() else _snapshot(section, where, field)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter rather than a model."""
    return (folder / ADAPTER_CONFIG).is_file()


def require_model(folder: Path, where: str, field: str = FIELD) -> None:
    """Refuse a folder that holds no whole model in safetensors, or one whose files name what lies outside of it."""
    if is_adapter(folder):  # transformers would read the adapter's own idea of its base
        fix = "merge it into its base: load it with PEFT, call merge_and_unload and save_pretrained"
        raise InputError(Problem(where, field, f"{folder} holds a PEFT adapter, not a model", fix))
    for needed in ("config.json", "tokenizer_config.json"):
        if not (folder / needed).is_file():
            raise InputError(Problem(where, field, f"{folder} has no {needed}", "name a model folder"))
    if not list(folder.glob("*.safetensors")):
        fix = "convert it: load it with transformers and call save_pretrained; pickled weights are not read"
        raise InputError(Problem(where, field, f"{folder} has no .safetensors weights", fix))
    _require_own_weights(folder, where, field)
    _require_own_attention(folder, where, field)
    require_quantizer(read_object(folder / "config.json", where, field), folder, where, field)


def _require_own_weights(folder: Path, where: str, field: str) -> None:
    """Refuse weights that are not the folder's own .safetensors files: transformers reads whatever an index names."""
    named = [read_object(folder / "config.json", where, field).get("transformers_weights")]
    for path in sorted(folder.glob("*.index.json")):
        shards = read_object(path, where, field).get("weight_map")
        named += shards.values() if isinstance(shards, dict) else [shards]
    for name in named:
        if name is not None and not (isinstance(name, str) and OWN_WEIGHTS.fullmatch(name)):
            problem = f"{folder} names weights that are not .safetensors files of its own ({name!r:.80})"
            raise InputError(Problem(where, field, problem, "fetch it again, from where you trust it"))


def _require_own_attention(folder: Path, where: str, field: str) -> None:
    """Refuse a model that asks for compiled code of another repository, which transformers fetches and runs."""
    for name, value in _settings(read_object(folder / "config.json", where, field)):
        if name.endswith(IMPLEMENTATIONS) and "/" in value:
            problem = f"{folder} wants code from the Hub ({name}: {value!r:.80})"
            raise InputError(Problem(where, field, problem, f"take `{name}` out of its config.json"))


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and value of every text in a configuration; inside a setting that is a mapping, that setting's name too."""
    waiting = list(config.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(name if name.endswith(IMPLEMENTATIONS) else inner, child) for inner, child in value.items()]
        elif isinstance(value, list):
            waiting += [(name, child) for child in value]
        elif isinstance(value, str):
            yield name, value


def read_object(path: Path, where: str, field: str, fix: str = "fetch or save it again") -> dict[str, Any]:
    """What a JSON file of a model or an adapter says.

    Raises:
        InputError: it is no JSON object.
    """
    try:
        return {**json.loads(path.read_text("utf-8"))}
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(Problem(where, field, f"{path} cannot be read ({first_line(error)})", fix)) from error


def _snapshot(section: ModelSection, where: str, field: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE

    name = section.model_name_or_path
    try:
        return Path(
            snapshot_download(
                name,
                revision=section.revision,
                allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
                + ["*.py"] * section.trust_remote_code,
            )
        )
    except Exception as error:  # the Hub's client raises a dozen kinds
        looked = f"{Path(name).expanduser().absolute()}, {ENDPOINT}, {HF_HUB_CACHE}"
        problem = (
            f"{name!r} is neither a folder here nor to be had from the Hub; looked in {looked}: {first_line(error)}"
        )
        fix = f"give a local folder, a Hub name, or {EMBEDDED!r}, the embedded default"
        raise InputError(Problem(where, field, problem, fix)) from error


# --- what a folder holds, without reading a model's weights -------------------------------------------------


@working("checksums of the model's weights")
def model_fingerprint(folder: Path) -> dict[str, Any]:
    """What a model folder computes: its configuration and its weights' sha256. Holds no path."""
    weights = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin"))
    config = read_object(folder / "config.json", str(folder), "")
    return {
        "config": decisive(config),
        "weights": [sha256_file(path) for path in weights],
    }


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's configuration decides what it computes, as plain JSON."""
    kept: dict[str, Any] = plain_json({name: value for name, value in sorted(config.items()) if name not in PROVENANCE})
    return kept


def plain_json(value: Any) -> Any:
    """What is nearly JSON as JSON: of a set its sorted texts, of other objects their text.

    Infinity is text too, for JSON has no such number, and some models have a limit that is none (Mamba's time steps).
    """
    return json.loads(json.dumps(value, default=_as_json), parse_constant=str)


def _as_json(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set) else str(value)


def end_ids(generation: Mapping[str, Any]) -> list[int]:
    """The ids that end an answer by a model's generation settings, or by its configuration where it has none."""
    given = generation.get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    return [id for id in ids if isinstance(id, int)]


def own_end_ids(folder: Path, where: str, field: str) -> list[int]:
    """`end_ids` of a model's folder."""
    path = folder / "generation_config.json"
    return end_ids(read_object(path if path.is_file() else folder / "config.json", where, field))


def tensor_shapes(paths: Iterable[Path], where: str, field: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in safetensors files, from the files' headers.

    Raises:
        InputError: a file that is damaged.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            problem = f"{path} cannot be read ({first_line(error)})"
            raise InputError(Problem(where, field, problem, "fetch or save it again")) from error
    return shapes


def skeleton(
    auto: Any, folder: Path, where: str, field: str, *, trust_remote_code: bool, **settings: Any
) -> PreTrainedModel:
    """A model as config.json describes it, on the meta device: names, shapes and settings, but no numbers.

    Args:
        auto: transformers' Auto class of the model.
        settings: take the place of what config.json says.

    Raises:
        InputError: transformers has no such model, or would have to run code that comes with it.
    """
    import torch
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, **settings)
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # a configuration can make transformers raise anything
        problem = f"{folder} is no model for {auto.__name__} ({first_line(error)})"
        fix = "name a model that transformers knows; `trust_remote_code` runs code that comes with a model"
        raise InputError(Problem(where, field, problem, fix)) from error


# --- reading ------------------------------------------------------------------------------------------------


def read_model(
    auto: Any, folder: Path, where: str, field: str, *, brought: Collection[str] = (), **arguments: Any
) -> PreTrainedModel:
    """Read a model for evaluation, every parameter from its files.

    Args:
        auto: transformers' Auto class of the model.
        brought: parameters that the files may lack, because an adapter brings them.
        arguments: of `from_pretrained`.

    Raises:
        InputError: the files are damaged, or lack a parameter, which transformers would draw at random.
    """
    from safetensors import SafetensorError

    try:
        with working(f"reading the model in {folder.name}"):
            model, info = auto.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **arguments)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        problem = f"{folder} cannot be read ({first_line(error)})"
        raise InputError(Problem(where, field, problem, f"name a complete model for {auto.__name__}")) from error
    if missing := sorted(set(info["missing_keys"]) - set(brought)):
        problem = f"{folder} lacks {len(missing)} of the model's tensors ({missing[0]})"
        raise InputError(Problem(where, field, problem, f"name a complete model for {auto.__name__}"))
    keep_differentiable(model)
    return model.eval()


@working("reading the tokenizer")
def read_tokenizer(folder: Path, where: str, field: str, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    Raises:
        InputError: there is none, it is damaged, or it would have to run code that comes with it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # a tokenizer's files can make it raise anything
        problem = f"the tokenizer of {folder} cannot be read ({first_line(error)})"
        fix = "fetch or save it again; `trust_remote_code` runs code that comes with a model"
        raise InputError(Problem(where, field, problem, fix)) from error


# --- training -----------------------------------------------------------------------------------------------


def lora_config(section: LoraSection) -> LoraConfig:
    """PEFT's configuration of the adapters to train."""
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **asdict(section))


def save_policy(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """`save_pretrained`, with the same bytes every time: PEFT writes the names of modules in no order."""
    for config in getattr(model, "peft_config", {}).values():
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)
    model.save_pretrained(folder)
