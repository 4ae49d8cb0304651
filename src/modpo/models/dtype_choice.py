"""`model.dtype: auto` made a number format: the faster one on the machine where the output folder was begun.

Policies of one front must start from the same model, so the choice is written into the output folder by the first
command that makes something there. A run that goes on elsewhere keeps it, and says so where it is the slower one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from modpo.base.errors import EnvironmentFault, InputError, Problem
from modpo.base.files import write_json
from modpo.base.progress import say_once
from modpo.experiment.file import EXPERIMENT_FILE, read_experiment
from modpo.experiment.sections import AUTO, Experiment, Resolved
from modpo.models.folders import device, read_object
from modpo.models.matmul_speed import MatmulSpeed, matmul_speed

AnyExperiment = TypeVar("AnyExperiment", bound=Experiment)

FIELD = "model.dtype"
FILE = "model_dtype.json"  # in the output folder
CHOICES = ("bfloat16", "float32")
MUCH_SLOWER = 0.7


def with_dtype(experiment: AnyExperiment, *, writes: bool = True) -> AnyExperiment:
    """An experiment whose `model.dtype` is a name, which this machine's device can train in.

    Args:
        writes: keep what `auto` is in the output folder.

    Raises:
        EnvironmentFault: the device cannot train in it. InputError: the output folder's file holds no dtype.
    """
    if experiment.model.dtype != AUTO:
        require_device_dtype(experiment)
        say_if_slow(experiment, "leave it out, for `auto`")
        return experiment
    kept, here = _begun_in(experiment.output_dir), matmul_speed(experiment.cache_dir)
    dtype = kept or here.faster
    named = _named(experiment, dtype)
    require_device_dtype(named, f"name another `output_dir`: {experiment.output_dir} was begun in float16")
    if writes and kept is None:
        write_json(experiment.output_dir / FILE, {"dtype": dtype})
    say_once(_said(experiment.output_dir, dtype, here))
    return named


def unmeasured(experiment: AnyExperiment) -> AnyExperiment:
    """With float32 for `auto`, to check other settings before anything is measured: every device has it."""
    return _named(experiment, "float32") if experiment.model.dtype == AUTO else experiment


def say_if_slow(experiment: Experiment, fix: str) -> None:
    """Warn, once, where the file names a number format in which this machine is much slower than in the other.

    Of an experiment that trains all weights, float32 is slow for a reason.
    """
    dtype = experiment.model.dtype
    if FIELD not in experiment.lines or dtype not in CHOICES or (dtype == "float32" and experiment.lora is None):
        return
    speed = matmul_speed(experiment.cache_dir)
    if speed.factor(dtype) < MUCH_SLOWER:
        slow = f"{dtype} is {speed.compared(dtype)} on this machine"
        say_once(f"warning: {experiment.where(FIELD)}:{FIELD}: {slow}; fix: {fix}")


def require_device_dtype(experiment: Experiment, fix: str = "use bfloat16 or float32") -> None:
    """Refuse a number format that this machine's device cannot train in.

    Raises:
        EnvironmentFault: it cannot.
    """
    if experiment.model.dtype == "float16" and device() == "cpu":
        where = experiment.where(FIELD)
        raise EnvironmentFault(f"{where}:dtype: float16 does not train on a CPU; fix: {fix}")


def _named(experiment: AnyExperiment, dtype: str) -> AnyExperiment:
    """With the number format filled in, also in what was asked for; the file names none still."""
    lines = {field: line for field, line in experiment.lines.items() if field != FIELD}
    named = replace(experiment, model=replace(experiment.model, dtype=dtype), lines=lines)
    if isinstance(named, Resolved) and named.asked.model.dtype == AUTO:
        named = replace(named, asked=_named(named.asked, dtype))
    return named


def _said(folder: Path, dtype: str, here: MatmulSpeed) -> str:
    if dtype == here.faster:
        return f"{FIELD}: auto is {dtype} here ({here.compared(dtype)})"
    slow = f"here {here.faster} is {here.compared(here.faster)}"
    return f"{FIELD}: auto is {dtype}, as {folder} was begun ({slow}; another `output_dir` chooses anew)"


def _begun_in(folder: Path) -> str | None:
    """The number format of the policies in the output folder, or of what was made for them; None: nothing was."""
    with suppress(InputError):  # there is none, or it is of another version, which is refused where it is compared
        named = read_experiment(folder / EXPERIMENT_FILE).model.dtype
        if named != AUTO:  # where a user's own file lies there
            return named
    path = folder / FILE
    if not path.exists():
        return None
    fix = f'write {{"dtype": "{CHOICES[0]}"}}, or {CHOICES[1]}, whichever the folder\'s models were read in'
    dtype = read_object(path, str(path), "dtype", fix).get("dtype")
    if dtype not in CHOICES:
        raise InputError(Problem(str(path), "dtype", f"is {dtype!r:.80}", fix))
    return str(dtype)
