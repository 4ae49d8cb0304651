"""Low-rank adapters added up: what the policy at a preference vector is, in memory by scale or as one PEFT folder.

    sum_p c_p s_p B_p A_p  =  [c_1 s_1 B_1, c_2 s_2 B_2, ...] [A_1; A_2; ...]        s_p = lora_alpha_p / r_p

Ranks are concatenated, so nothing is lost. (PEFT's `add_weighted_adapter(combination_type="linear")` mixes the A's and
the B's apart, which is another update.) A smaller rank is had by the singular value decomposition of that product.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.errors import InputError, Problem
from modpo.base.files import MANIFEST
from modpo.base.text import first_line
from modpo.models.adapters import ADAPTER_WEIGHTS, adapter_config
from modpo.models.folders import ADAPTER_CONFIG, TRAINING_LOG

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

A, B = ".lora_A.weight", ".lora_B.weight"
# Settings that, where they are set, make an adapter more than s B A on linear layers.
MORE_THAN_LOW_RANK = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "rank_pattern",
    "alpha_pattern",
)
OF_ONE_RUN = (MANIFEST, TRAINING_LOG)  # beside a model's files: they say how it was trained
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")  # the others change the base's weights


@dataclass(frozen=True)
class LowRank:
    """One adapter on disk: its configuration and, by module, (A (r, in), B (out, r)) with the scale in B."""

    config: dict[str, Any]
    updates: dict[str, tuple[Tensor, Tensor]]


def combine_adapters(coefficients: Mapping[Path, float], output: Path, *, rank: int | None = None) -> float:
    """Write the weighted sum of adapters into `output` as an adapter that PEFT and vLLM read.

    Args:
        coefficients: adapter folder -> its coefficient; any real numbers.
        rank: compress to this rank by singular value decomposition; None keeps the sum of the ranks.

    Returns:
        The relative error of the compressed weight update, in the Frobenius norm over all modules; 0 without `rank`.

    Raises:
        InputError: adapters that are no plain LoRA, or of different modules or bases.
    """
    from safetensors.torch import save_file

    if rank is not None and rank < 1:
        raise InputError(Problem(str(output), "rank", f"is {rank}", "give at least 1"))
    kept = {folder: c for folder, c in coefficients.items() if c != 0}
    if not kept:
        raise InputError(Problem(str(output), "coefficients", "are all 0", "give at least one adapter a weight"))
    adapters = {folder: read_adapter(folder) for folder in kept}
    _require_same_modules(adapters)
    first = next(iter(adapters.values()))
    tensors: dict[str, Tensor] = {}
    lost = whole = 0.0
    for module in first.updates:
        a, b = _concatenated((adapters[folder].updates[module], c) for folder, c in kept.items())
        if rank is not None and rank < len(a):
            a, b, off, norm = _truncated(a, b, rank)
            lost, whole = lost + off, whole + norm
        tensors[module + A], tensors[module + B] = a.contiguous(), b.contiguous()
    output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (final_rank,) = {len(tensor) for name, tensor in tensors.items() if name.endswith(A)}
    config = json.dumps(_config(first.config, final_rank), indent=2, sort_keys=True)
    (output / ADAPTER_CONFIG).write_text(config + "\n", "utf-8")
    return float((lost / whole) ** 0.5) if whole else 0.0


def average_models(coefficients: Mapping[Path, float], output: Path) -> None:
    """Write the weighted sum of whole models' weights into `output`: models of one training, saved alike.

    Sums are taken in float32, and saved as the weights were.

    Raises:
        InputError: models of other tensors.
    """
    from safetensors.torch import load_file, save_file

    kept = {folder: c for folder, c in coefficients.items() if c != 0}
    first = next(iter(kept))
    for path in sorted(p for p in first.iterdir() if p.is_file() and p.name not in OF_ONE_RUN):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, output / path.name)  # configuration, tokenizer, index
            continue
        parts = [(load_file(folder / path.name), c) for folder, c in kept.items()]
        own = parts[0][0]
        if any({n: t.shape for n, t in part.items()} != {n: t.shape for n, t in own.items()} for part, _ in parts):
            raise InputError(Problem(str(path), "", "holds other tensors than its namesakes", "train the models again"))
        mixed = {n: sum(c * part[n].float() for part, c in parts).to(own[n].dtype) for n in own}
        save_file(mixed, output / path.name, metadata={"format": "pt"})


def read_adapter(folder: Path) -> LowRank:
    """A LoRA adapter's update by module, in float32.

    Raises:
        InputError: not a LoRA adapter in safetensors, or one whose update is more than B A.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, path = plain_config(folder), folder / ADAPTER_WEIGHTS
    try:
        state = {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        problem = f"cannot be read ({first_line(error)})"
        raise InputError(Problem(str(path), "", problem, "save or train the adapter again")) from error
    modules = [name.removesuffix(A) for name in state if name.endswith(A)]
    if not modules or len(state) != 2 * len(modules) or any(module + B not in state for module in modules):
        problem, fix = "holds something else than pairs of lora_A and lora_B", "merge the adapter into its base"
        raise InputError(Problem(str(path), "", problem, fix))
    return LowRank(config, {module: (state[module + A], _scale(config) * state[module + B]) for module in modules})


def steer(model: PeftModel, weights: Mapping[str, float]) -> None:
    """Scale adapters that are active together by their weights; nothing is rebuilt.

    Args:
        weights: by adapter.
    """
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            for adapter, weight in weights.items():
                module.set_scale(adapter, weight)


def plain_config(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter that can be added to others.

    Raises:
        InputError: no adapter there, or not a plain LoRA.
    """
    if not (folder / ADAPTER_CONFIG).is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        fix = "name the folder of a PEFT adapter saved as safetensors"
        raise InputError(Problem(str(folder), "", f"has no {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}", fix))
    config = adapter_config(folder, str(folder), ADAPTER_CONFIG)
    if problem := not_plain(config):
        raise InputError(Problem(str(folder), ADAPTER_CONFIG, problem, "only plain LoRA adapters can be added up"))
    return config


def not_plain(config: Mapping[str, Any]) -> str:
    """What makes an adapter's configuration other than a plain LoRA's; empty where nothing does."""
    if config.get("peft_type") != "LORA":
        return f"is of type {config.get('peft_type')}"
    if more := [name for name in MORE_THAN_LOW_RANK if config.get(name)]:
        return f"sets {', '.join(more)}"
    if config.get("bias", "none") != "none":
        return f"trains biases (bias: {config['bias']})"
    if config.get("init_lora_weights") not in PLAIN_STARTS:
        return f"changes its base (init_lora_weights: {config['init_lora_weights']})"
    numbers = (config.get("r"), config.get("lora_alpha"))
    return "" if all(isinstance(n, int | float) and n > 0 for n in numbers) else "has no r and lora_alpha above 0"


def _scale(config: Mapping[str, Any]) -> float:
    """s, what B A is multiplied by."""
    return float(config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"]))


def _require_same_modules(adapters: Mapping[Path, LowRank]) -> None:
    shapes = {
        folder: {module: (a.shape[1], b.shape[0]) for module, (a, b) in adapter.updates.items()}
        for folder, adapter in adapters.items()
    }
    first = next(iter(shapes.values()))
    for folder, found in shapes.items():
        if found != first:
            fix = "combine adapters that were trained on one base with the same target_modules"
            raise InputError(Problem(str(folder), ADAPTER_CONFIG, "adapts other modules than the first adapter", fix))


def _concatenated(updates: Iterable[tuple[tuple[Tensor, Tensor], float]]) -> tuple[Tensor, Tensor]:
    import torch

    parts: Sequence[tuple[Tensor, Tensor]] = [(a, c * b) for (a, b), c in updates]
    return torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], dim=1)


def _truncated(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """B A at a smaller rank, with the squared norms of what is lost and of the whole.

    The product is never built: with B = Q_b R_b and A^T = Q_a R_a only R_b R_a^T is decomposed, (R, R).
    """
    import torch
    from torch.nn.functional import pad

    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = s[:rank].sqrt()
    absent = rank - len(root)  # a small module has fewer singular values than the others
    small_b = pad((q_b @ u[:, :rank]) * root, (0, absent))  # (out, rank)
    small_a = pad(root[:, None] * (vt[:rank] @ q_a.T), (0, 0, 0, absent))  # (rank, in)
    return small_a.float(), small_b.float(), float(s[rank:].square().sum()), float(s.square().sum())


def _config(config: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The first adapter's configuration at another rank, scale 1: each B holds its scale already."""
    return {**config, "r": rank, "lora_alpha": rank, "use_rslora": False, "inference_mode": True}
