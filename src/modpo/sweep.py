"""Many preference vectors, one policy each. A killed sweep goes on from the last checkpoint of the point it was at; a
point that fails is recorded and the others go on.

    <output>/experiment.yaml
    <output>/points/<name>/     a plain PEFT adapter, `training_log.json` and a manifest
    <output>/points/.work-<name>/     checkpoints of a point that is not finished, see `modpo.checkpoints`
    <output>/failed/<name>.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modpo import simplex
from modpo.errors import EnvironmentFault, InputError, IntegrityError, ModpoError, Problem
from modpo.experiment.file import read_experiment, to_yaml
from modpo.experiment.sections import Experiment
from modpo.models import ReferenceModel, lora_config, require_device_dtype, save_policy
from modpo.progress import duration, say
from modpo.publish import locked, new_file, new_folder, read_manifest, remove_leftovers, sha256_json, write_json
from modpo.scoring import ScoredData, experiment_scorer
from modpo.simplex import Weights
from modpo.steering import CONTINUOUS
from modpo.training_data import load_groups

if TYPE_CHECKING:
    from modpo.trainer import MODPOTrainer
    from modpo.training_config import MODPOConfig

    Config = TypeVar("Config", bound=MODPOConfig)

EXPERIMENT_FILE = "experiment.yaml"


@dataclass(frozen=True)
class TrainedPoint:
    """A finished point of a sweep, as found on disk."""

    name: str
    weights: Weights
    folder: Path
    cost: dict[str, float]  # seconds and packed tokens of training
    files: dict[str, str]  # sha256 of each file


def run_sweep(experiment: Experiment) -> list[str]:
    """Train every vector of the experiment that has no finished point yet.

    Returns:
        Names of the points that failed; why stands in `<output>/failed/<name>.json`.

    Raises:
        InputError: no vectors. IntegrityError: the folder holds another experiment. EnvironmentFault: it is busy.
    """
    vectors = experiment.sweep.weights
    if not vectors:
        fix = "add `sweep: {grid: 5}`, a `lattice`, or a list of `weights`"
        raise InputError(Problem(experiment.where("sweep"), "sweep", "no preference vectors", fix))
    require_device_dtype(experiment.model.dtype, experiment.where("model"))
    train, _ = load_groups(experiment)
    with locked(experiment.output_dir):
        claim_folder(experiment)
        remove_unfinished(experiment.output_dir)
        reference = ReferenceModel(experiment.model, experiment.cache_dir, experiment.where("model"))
        scored = experiment_scorer(experiment, reference).score(train)
        if experiment.sweep.mode == CONTINUOUS:
            from modpo.continuous_sweep import sweep_continuous

            sweep_continuous(experiment, scored, reference)
            return []
        failed = []
        for number, weights in enumerate(vectors, start=1):
            say(f"point {number} of {len(vectors)}: {simplex.label(weights)}")
            if not _train_or_record(experiment, weights, scored, reference):
                failed.append(simplex.name(weights))
    return failed


def train_point(experiment: Experiment, weights: Weights, output: Path | None = None) -> Path:
    """Train one vector into `output` (default: its place in the sweep's folder) and return the folder."""
    require_device_dtype(experiment.model.dtype, experiment.where("model"))
    train, _ = load_groups(experiment)
    folder = output or point_folder(experiment, weights)
    if output is not None and output.is_dir() and any(output.iterdir()) and read_manifest(output) is None:
        fix = "name a new folder, or an empty one"
        raise InputError(Problem("--output", str(output), "holds something that is no policy of modpo", fix))
    with locked(output.parent if output else experiment.output_dir):
        if output is None:
            claim_folder(experiment)
            remove_unfinished(experiment.output_dir)
        reference = ReferenceModel(experiment.model, experiment.cache_dir, experiment.where("model"))
        scored = experiment_scorer(experiment, reference).score(train)
        _train(experiment, weights, scored, reference, folder)
        if output is None:
            _failure_record(experiment, weights).unlink(missing_ok=True)
    return folder


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run left half written, in a run's folder and those right below it. Only under its lock: it
    might be somebody's work.
    """
    remove_leftovers(folder)
    for below in folder.iterdir():
        remove_leftovers(below)


def claim_folder(experiment: Experiment) -> None:
    """Write the experiment into its output folder, or check that the one there is the same.

    Vectors may be added or taken away, evaluation may change; what is trained may not.
    """
    require_same_experiment(experiment)
    with new_file(experiment.output_dir / EXPERIMENT_FILE) as temporary:
        temporary.write_text(to_yaml(experiment), "utf-8")


def require_same_experiment(experiment: Experiment) -> None:
    """Refuse an output folder whose policies were trained by another experiment.

    Raises:
        IntegrityError: naming the sections that differ.
    """
    path = experiment.output_dir / EXPERIMENT_FILE
    differences = _differences(path, experiment) if path.is_file() else []
    if differences:
        raise IntegrityError(
            f"{path}: the folder holds another experiment ({', '.join(differences)} differ); "
            "fix: choose another `output_dir`, or delete the folder"
        )


def _differences(path: Path, experiment: Experiment) -> list[str]:
    """Sections that decide what is trained in which an experiment differs from the one that was written."""
    try:
        before, after = read_experiment(path), experiment.asked or experiment
    except InputError as error:
        problem = error.problems[0].problem
        fix = "choose another `output_dir`, or delete the folder"
        raise IntegrityError(f"{path}: is no experiment of this version ({problem}); fix: {fix}") from error
    sections = {name: (getattr(before, name), getattr(after, name)) for name in ("lora", "data", "objectives", "seed")}
    sections["model"] = (before.model, replace(after.model, trust_remote_code=False))
    sections["training"] = (before.training.deciding(), after.training.deciding())
    return [name for name, (old, new) in sections.items() if old != new]


def point_folder(experiment: Experiment, weights: Weights) -> Path:
    """Where the point of a vector lies."""
    return experiment.output_dir / "points" / simplex.name(weights)


def finished_points(experiment: Experiment) -> Iterator[TrainedPoint]:
    """The points of the experiment that are there and verify, in the experiment's order."""
    for weights in experiment.sweep.weights:
        folder = point_folder(experiment, weights)
        manifest = read_manifest(folder)
        if manifest is not None:
            yield TrainedPoint(simplex.name(weights), weights, folder, manifest["cost"], manifest["files"])


def failures(experiment: Experiment) -> list[dict[str, Any]]:
    """What is recorded of the points that failed: name, weights, reason."""
    records = [_failure_record(experiment, weights) for weights in experiment.sweep.weights]
    return [json.loads(path.read_text("utf-8")) for path in records if path.is_file()]


def _failure_record(experiment: Experiment, weights: Weights) -> Path:
    return experiment.output_dir / "failed" / f"{simplex.name(weights)}.json"


def _train_or_record(experiment: Experiment, weights: Weights, scored: ScoredData, reference: ReferenceModel) -> bool:
    name = simplex.name(weights)
    record = _failure_record(experiment, weights)
    try:
        _train(experiment, weights, scored, reference, point_folder(experiment, weights))
    except (InputError, IntegrityError, EnvironmentFault):
        raise  # not of this point's making: the others would meet it too
    except (ModpoError, RuntimeError, ValueError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        say(f"point {name} failed: {reason}")
        write_json(record, {"name": name, "weights": weights, "reason": f"{type(error).__name__}: {reason}"})
        _forget_model(reference)
        return False
    record.unlink(missing_ok=True)
    return True


def _train(
    experiment: Experiment, weights: Weights, scored: ScoredData, reference: ReferenceModel, folder: Path
) -> None:
    from modpo.checkpoints import Checkpoints, trained

    key, label = _point_key(experiment, weights, scored), simplex.name(weights)
    work = folder.parent / f".work-{folder.name}"
    manifest = read_manifest(folder)
    if manifest is not None:
        if manifest.get("key") != key:
            raise IntegrityError(f"{folder}: holds a point of other data or settings; fix: delete it and run again")
        shutil.rmtree(work, ignore_errors=True)  # where the run ended between the two
        say(f"{label}: finished before, kept")
        return
    run = {**point_parts(experiment, weights, scored), "model": reference.fingerprint}
    section = experiment.training
    checkpoints = Checkpoints(work, run, every=section.save_steps, keep=section.save_total_limit)
    trainer = _trainer(experiment, weights, scored, reference, work)
    try:
        with trained(trainer, checkpoints, label) as cost:
            about = {"key": key, "weights": weights, "seed": experiment.seed, "cost": cost}
            about["beta"] = experiment.training.beta  # what makes the policy an implicit reward
            with new_folder(folder, about) as temporary:
                save_policy(trainer.model, temporary)
                if experiment.lora is None:
                    reference.tokenizer.save_pretrained(temporary)
                write_json(temporary / "training_log.json", trainer.state.log_history)
    finally:
        _give_base_back(trainer, reference)
    say(f"{label}: trained in {duration(cost['seconds'])}")


def _point_key(experiment: Experiment, weights: Weights, scored: ScoredData) -> str:
    return sha256_json(point_parts(experiment, weights, scored))


def point_parts(experiment: Experiment, weights: Weights, scored: ScoredData) -> dict[str, Any]:
    """Everything that decides the weights of a point, by name."""
    return {
        "data": {
            "tokens": scored.tokens.key,
            "reference": scored.reference.key,
            **{f"pairs/{name}": column.key for name, column in scored.pairs.items()},
            **{f"reward/{name}": column.key for name, column in scored.rewards.items()},
        },
        "weights": weights,
        "seed": experiment.seed,
        "training": experiment.training.deciding(),
        "lora": asdict(experiment.lora) if experiment.lora else None,
        "objectives": {name: [o.sign, o.pairs] for name, o in experiment.objectives.items()},
        "calibrations": {name: asdict(c) for name, c in scored.calibrations.items()},
    }


def _trainer(
    experiment: Experiment, weights: Weights, scored: ScoredData, reference: ReferenceModel, work: Path
) -> MODPOTrainer:
    from transformers import PrinterCallback

    from modpo.trainer import MODPOTrainer

    trainer = MODPOTrainer(
        reference.model,
        args=training_arguments(experiment, weights, work),
        train_dataset=scored.dataset(),
        processing_class=reference.tokenizer,
        objectives=experiment.objectives,
        calibrations=scored.calibrations,
        peft_config=lora_config(experiment.lora) if experiment.lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(
    experiment: Experiment,
    weights: Weights,
    work: Path,
    *,
    kind: type[Config] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Config:
    """The experiment's training section as `MODPOConfig`, or as another kind of it with `more` fields."""
    from modpo.models import device
    from modpo.training_config import MODPOConfig

    settings = experiment.training.deciding()
    arguments = settings.pop("arguments")
    settings["activation_checkpointing"] = settings.pop("gradient_checkpointing")  # transformers' new name for it
    defaults = {
        "bf16": experiment.model.dtype == "bfloat16",
        "fp16": experiment.model.dtype == "float16",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": device() != "cpu",
    }
    try:
        return (kind or MODPOConfig)(
            output_dir=str(work),
            weights=weights,
            seed=experiment.seed,
            max_length=experiment.data.max_length,
            max_prompt_length=experiment.data.max_prompt_length,
            **(defaults | settings | arguments | dict(more or {})),
        )
    except (TypeError, ValueError) as error:  # names and values that only transformers knows
        where, fix = experiment.where("training"), "see the fields of trl.DPOConfig"
        raise InputError(Problem(where, "training", str(error).splitlines()[0], fix)) from error


def _give_base_back(trainer: MODPOTrainer, reference: ReferenceModel) -> None:
    """Take the adapter off, so that the next point starts from the same base without reading it again."""
    from peft import PeftModel

    from modpo.logprobs import detach_packed_forward

    if isinstance(trainer.model, PeftModel) and not trainer.model.peft_config["default"].modules_to_save:
        base = trainer.model.unload()
        detach_packed_forward(base)
        base.requires_grad_(True)
        base.eval()
    else:
        _forget_model(reference)  # its own weights were trained


def _forget_model(reference: ReferenceModel) -> None:
    reference.__dict__.pop("model", None)
