"""What all trainings have in common: settings that are checked early, and a trainer that prints nothing itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modpo.base.costs import Cost, Meter
from modpo.base.errors import InputError, NumericError, Problem
from modpo.base.text import first_line
from modpo.experiment.sections import Experiment

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer, TrainingArguments

Config = TypeVar("Config", bound="TrainingArguments")

# Fields that no section's `arguments` may set: name -> where the experiment has it. Sections add to it.
ELSEWHERE = {
    "output_dir": "output_dir",
    "seed": "seed",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "model_init_kwargs": "model",
    "trust_remote_code": "trust_remote_code",
    "skip_empty": "data.skip_empty",
    "chat_template_kwargs": "data.chat_template_kwargs",
}


def training_config(
    kind: type[Config],
    defaults: Mapping[str, Any],
    arguments: Mapping[str, Any],
    *,
    where: Callable[[str], str],
    field: str,
    elsewhere: Mapping[str, str] = ELSEWHERE,
    values_of: str | None = None,
) -> Config:
    """A trainer's configuration: `arguments` before `defaults` before its own.

    Args:
        kind: `trl.SFTConfig`, `trl.RewardConfig` or `modpo.MODPOConfig`.
        where: the place of a dotted field, such as "experiment.yaml:12"; `field`: that of `arguments`, "sft.arguments".
        elsewhere: names that `arguments` must not hold, and where the experiment has them.
        values_of: what an error of a value names, where `defaults` come from the experiment too; default: `field`.

    Raises:
        InputError: a name that the configuration does not have, or a value that it refuses.
    """
    names = {f.name for f in dataclasses.fields(kind) if f.init}
    see_fields = f"see the fields of {kind.__name__}"
    problems = []
    for name in arguments:
        path = f"{field}.{name}"
        if name in elsewhere:
            problems.append(Problem(where(path), path, "has a place of its own", f"set `{elsewhere[name]}` instead"))
        elif name not in names:
            problems.append(Problem(where(path), path, f"is no field of {kind.__name__}", see_fields))
    if problems:
        raise InputError(problems)
    given, section = dict(arguments), values_of or field
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):  # transformers has new names for them
        if old in given:
            given.setdefault(old.replace("gradient", "activation"), given.pop(old))
    try:
        return kind(**{**defaults, **given})
    except InputError as error:  # of our own configuration, which does not know the file
        paths = [f"{field if p.field in arguments else section}.{p.field}" for p in error.problems]
        problems = [replace(p, where=where(path), field=path) for p, path in zip(error.problems, paths, strict=True)]
        raise InputError(problems) from error
    except (TypeError, ValueError) as error:  # values that only transformers knows
        raise InputError(Problem(where(section), section, first_line(error), see_fields)) from error


def modest_batches(arguments: Mapping[str, Any]) -> dict[str, int]:
    """TRL's 8 rows a step, but read 2 at a time where `arguments` set neither: padded rows of 1,000 tokens take far
    more memory than packed ones, and nothing bounds them."""
    asked = {"per_device_train_batch_size", "gradient_accumulation_steps"} & set(arguments)
    return {} if asked else {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}


def quiet_settings(experiment: Experiment, work: Path) -> dict[str, Any]:
    """Settings of every trainer: the experiment's seed and number format, no checkpoints and no output of its own."""
    from modpo.models.folders import device

    on_cpu = device() == "cpu"
    return {
        "output_dir": str(work),
        "seed": experiment.seed,
        "bf16": experiment.model.number_format == "bfloat16",
        "fp16": experiment.model.number_format == "float16",
        "activation_checkpointing": experiment.training.gradient_checkpointing,
        "use_cpu": on_cpu,  # bf16 on a CPU has to be asked for
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
        "logging_nan_inf_filter": False,  # it would hide that a loss is NaN
    }


def modpo_settings(experiment: Experiment, work: Path) -> dict[str, Any]:
    """`quiet_settings` with the experiment's `training`, but for its `arguments`, and its lengths."""
    training = experiment.training.deciding()
    del training["arguments"], training["gradient_checkpointing"]  # `quiet_settings` has the latter, under its new name
    lengths = {"max_length": experiment.data.max_length, "max_prompt_length": experiment.data.max_prompt_length}
    return quiet_settings(experiment, work) | training | lengths


def most_packed_tokens(asked: int | None, device: str) -> int:
    """Packed tokens of a forward pass: `max_packed_tokens` where it is given."""
    return asked or (2048 if device == "cpu" else 16384)


def disable_functional_dropout(model: nn.Module) -> None:
    """Set dropout rates that functions read to 0, as in Llama's attention: TRL turns off `nn.Dropout` layers only."""
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def run_training(trainer: Trainer, label: str) -> Cost:
    """Train under a progress bar.

    Returns:
        The cost; `tokens` are those that were read.

    Raises:
        NumericError: the loss is not finite.
    """
    from transformers import PrinterCallback

    from modpo.training.callbacks import TrainingProgress

    trainer.remove_callback(PrinterCallback)
    with TrainingProgress(label) as progress, Meter() as meter:
        trainer.add_callback(progress)
        require_finite(trainer.train().training_loss, f"{label}: the training loss")
    return replace(meter.cost, tokens=trainer._total_train_tokens)


def require_finite(number: float, what: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        NumericError: naming what it is.
    """
    if not math.isfinite(number):
        raise NumericError(f"{what} is not finite: {number}; fix: lower learning_rate, or train in bfloat16 or float32")


@contextmanager
def one_progress_bar() -> Iterator[None]:
    """Within it, `datasets` shows no progress of its own beside ours."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
