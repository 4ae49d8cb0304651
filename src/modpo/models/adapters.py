"""PEFT adapters on disk: fingerprinted, and held against the base that they are to change."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from modpo.base.errors import InputError, Problem
from modpo.base.files import sha256_file
from modpo.base.finite import nonfinite_tensors
from modpo.base.progress import say_once
from modpo.base.text import first_line
from modpo.experiment.sections import LoraSection
from modpo.models.folders import ADAPTER_CONFIG, lora_config, read_object, tensor_shapes
from modpo.models.quantized import dequantized, is_quantized

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Settings of an adapter's configuration that say where it came from, not what it computes.
PROVENANCE = ("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode")
# Settings that make PEFT look beyond the folder: import a module, read other adapters.
REACHES_OUT = ("megatron_config", "adapters")
HEAD_PROBLEM = (
    "puts an adapter on the output head (`lm_head`), whose weights are read past it: it would never be trained"
)
HEAD_FIX = "take `lm_head` out of `target_modules`"
TIED = (
    "the model's embeddings and output head are one tensor, of which the adapters change one use: a merged policy has "
    "two; fix: leave the embeddings out if you mean them to stay one"
)


def adapter_config(folder: Path, where: str, field: str) -> dict[str, Any]:
    """What an adapter's configuration says.

    Raises:
        InputError: it is no JSON object, or names code or adapters outside of its folder.
    """
    config = read_object(folder / ADAPTER_CONFIG, where, field, fix="save the adapter again")
    if reaching := [name for name in REACHES_OUT if config.get(name)]:
        problem, fix = f"{folder} wants what lies outside of it ({reaching[0]})", "name an adapter that stands alone"
        raise InputError(Problem(where, field, problem, fix))
    return config


def require_adapter(folder: Path, where: str, field: str) -> None:
    """Refuse what PEFT would read all the same: pickled weights, and a configuration that reaches out of its folder.

    Raises:
        InputError: it is such an adapter.
    """
    if not (folder / ADAPTER_WEIGHTS).is_file():
        fix = "save it with PEFT's save_pretrained; pickled weights are not read"
        raise InputError(Problem(where, field, f"{folder} has no {ADAPTER_WEIGHTS}", fix))
    adapter_config(folder, where, field)


def adapter_fingerprint(folder: Path) -> dict[str, Any]:
    """What a PEFT adapter adds to its base: its configuration and its weights' sha256. Holds no path."""
    config = adapter_config(folder, str(folder), "")
    return {
        "config": {name: value for name, value in sorted(config.items()) if name not in PROVENANCE},
        "weights": sha256_file(folder / ADAPTER_WEIGHTS),
    }


def attach_adapter(model: PreTrainedModel, folder: Path, *, name: str = "default") -> PeftModel:
    """A model with a saved adapter on it, ready to answer, the adapter in the model's dtype as in serving.

    It is saved in float32. Casting the whole model in its place would round the buffers too, which stay float32 in a
    model of any dtype: rotary frequencies in bfloat16 are off by up to 0.2 %.
    """
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder, adapter_name=name, autocast_adapter_dtype=False).eval()


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A saved adapter merged into the weights of its base, which is changed; into whole weights if it is quantised."""
    from peft import PeftModel

    base = dequantized(model) if is_quantized(model) else model
    merged: PreTrainedModel = PeftModel.from_pretrained(base, folder).merge_and_unload().eval()
    return merged


def merged_adapters(model: PeftModel) -> PreTrainedModel:
    """A model with its adapters merged into the weights of its base, see `merge_adapter`."""
    if not is_quantized(model):
        merged: PreTrainedModel = model.merge_and_unload()
        return merged
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return merge_adapter(model.unload(), Path(folder))


def add_adapters(outline: PreTrainedModel, section: LoraSection, where: str) -> PeftModel:
    """New adapters on the skeleton of a model.

    Raises:
        InputError: some fit no module of the model, or are of its head.
    """
    import torch
    from peft import get_peft_model

    try:
        with torch.device("meta"), warnings.catch_warnings(record=True, action="always") as warned:
            adapted: PeftModel = get_peft_model(outline, lora_config(section))
    except ValueError as error:
        problem = f"do not fit the model: {first_line(error)}"
        named = "name modules of this model"
        fix = f"set `target_modules: all-linear`, or {named}"
        if section.target_modules == "all-linear":  # some of a state-space model cannot have adapters
            fix = f"{named} that can, such as `target_modules: [in_proj]`"
        raise InputError(Problem(where, "lora", problem, fix)) from error
    if adapts_head(adapted):
        raise InputError(Problem(where, "lora.target_modules", HEAD_PROBLEM, HEAD_FIX))
    if any("tie_word_embeddings" in str(warning.message) for warning in warned):
        say_once(f"warning: {where}:lora: {TIED}")
    return adapted


def adapts_head(model: PreTrainedModel | PeftModel) -> bool:
    """Whether there is an adapter on the output head. (A head that is trained whole is none.)"""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(model.get_output_embeddings(), BaseTunerLayer)


def would_adapt_head(model: PreTrainedModel | PeftModel, config: PeftConfig) -> bool:
    """Whether adapters that are to be added would be on the output head."""
    from peft.tuners.tuners_utils import check_target_module_exists

    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head]
    parameters = getattr(config, "target_parameters", None) or ()
    return any(
        (getattr(config, "target_modules", None) and check_target_module_exists(config, name))
        or any(f"{name}.weight".endswith(parameter) for parameter in parameters)
        for name in names
    )


def fit_adapter(folder: Path, base: PreTrainedModel, where: str, field: str) -> PeftModel:
    """Put an adapter on the skeleton of its base and hold its file against what belongs there.

    PEFT itself only warns of tensors that are missing, passes over those that are too many, and reads NaN.

    Returns:
        The skeleton, adapted.

    Raises:
        InputError: an adapter of another base, one that is damaged, pickled or not finite, or a prompt.
    """
    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    path = folder / ADAPTER_WEIGHTS
    require_adapter(folder, where, field)
    try:
        config = PeftConfig.from_pretrained(folder)
        if config.is_prompt_learning:
            raise ValueError(f"{config.peft_type.value} changes what the model reads, not its weights")
        config.init_lora_weights = False  # there is nothing to start from: the file holds the weights
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            adapted = get_peft_model(base, config)
    except Exception as error:  # a configuration can make PEFT raise anything
        problem, fix = f"{folder} does not fit its base ({first_line(error)})", "name an adapter of this base"
        raise InputError(Problem(where, field, problem, fix)) from error
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if problem := _differences(tensor_shapes([path], where, field), expected):
        fix = "name the base that it was trained on, and an adapter that was saved whole"
        raise InputError(Problem(where, field, f"{folder} does not fit its base: it {problem}", fix))
    if broken := nonfinite_tensors(path):
        problem = f"{path} holds NaN or infinity in {len(broken)} tensors ({broken[0]})"
        raise InputError(Problem(where, field, problem, "train the adapter again, with a lower learning rate"))
    return adapted


def _differences(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> str:
    """What is wrong with the tensors that were found; empty where nothing is."""
    reshaped = [
        f"{name}: {found[name]} instead of {expected[name]}"
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name]
    ]
    kinds = {
        "lacks": sorted(expected.keys() - found.keys()),
        "should not have": sorted(found.keys() - expected.keys()),
        "has in another shape": reshaped,
    }
    return ", ".join(f"{kind} {len(names)} tensors ({names[0]})" for kind, names in kinds.items() if names)
