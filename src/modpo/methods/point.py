"""What decides a policy, whether it is there already, and its training: the same for every method."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modpo.base.artifact import Artifact
from modpo.base.files import write_json
from modpo.base.progress import duration, say, working
from modpo.base.simplex import Weights
from modpo.data.clock import save_tokenizer
from modpo.experiment.sections import Experiment
from modpo.methods.run import Run
from modpo.models.folders import TRAINING_LOG, save_policy
from modpo.models.reference import ReferenceModel
from modpo.scored.data import ScoredData

if TYPE_CHECKING:
    from modpo.training.on_policy import OnPolicy
    from modpo.training.trainer import MODPOTrainer

    Trainer = TypeVar("Trainer", bound=MODPOTrainer | OnPolicy)


def shared_parts(experiment: Experiment, scored: ScoredData) -> dict[str, Any]:
    """What decides the policies of all vectors, by name: data, rewards, training."""
    return {
        "data": {
            "tokens": scored.tokens.key,
            "reference": scored.reference.key,
            **{f"pairs/{name}": column.key for name, column in scored.pairs.items()},
            **{f"reward/{name}": column.key for name, column in scored.rewards.items()},
        },
        "seed": experiment.seed,
        "training": experiment.training.deciding(),
        "lora": asdict(experiment.lora) if experiment.lora else None,
        "objectives": {name: [o.sign, o.pairs] for name, o in experiment.objectives.items()},
        "calibrations": {name: asdict(c) for name, c in scored.calibrations.items()},
    }


def point_parts(run: Run, weights: Weights) -> dict[str, Any]:
    """What decides the policy of one vector, by name."""
    return {**shared_parts(run.experiment, run.scored), "weights": weights}


def about_combined(experiment: Experiment, weights: Weights, cost: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of a point that is combined from trained adapters or models; `cost` is its share."""
    return {"weights": weights, "seed": experiment.seed, "cost": cost, "beta": experiment.training.beta}


def work_folder(folder: Path) -> Path:
    """Where the checkpoints of a policy lie until it is finished."""
    return folder.parent / f".work-{folder.name}"


@working("the policy")
def train_policy(
    run: Run,
    folder: Path,
    parts: Mapping[str, Any],
    label: str,
    new_trainer: Callable[[Path], Trainer],
    *,
    about: Mapping[str, Any],
    save: Callable[[Trainer, Path], None] | None = None,
) -> None:
    """Train a policy, from its newest checkpoint if there is one; kept where it is finished.

    Args:
        parts: what decides it, by name.
        new_trainer: makes a trainer that has not trained yet, with a folder to work in.
        about: what its manifest says of it besides.
        save: writes it; default: the adapter, or the whole model with its tokenizer.

    Raises:
        IntegrityError: the folder holds something of other data or settings. NumericError: a number is not finite.
    """
    from modpo.training.checkpoints import Checkpoints
    from modpo.training.resumable import trained

    experiment, section = run.experiment, run.experiment.training
    policy, work = Artifact(folder, parts, label), work_folder(folder)
    if policy.there():
        shutil.rmtree(work, ignore_errors=True)  # where a run ended between publishing and cleaning up
        return
    identity = {**parts, "model": run.reference.fingerprint}
    checkpoints = Checkpoints(work, identity, every=section.save_steps, keep=section.save_total_limit)
    with working("the trainer, made ready"):
        trainer = new_trainer(work)
    try:
        with (
            trained(trainer, checkpoints, label) as cost,
            # beta is what makes the policy an implicit reward
            policy.making(seed=experiment.seed, cost=cost, **about, beta=section.beta) as new,
        ):
            if save:
                save(trainer, new.folder)
            else:
                save_policy(trainer.model, new.folder)
                if experiment.lora is None:
                    save_tokenizer(run.reference.tokenizer, new.folder)
            write_json(new.folder / TRAINING_LOG, trainer.state.log_history)
    finally:
        give_base_back(trainer, run.reference)
    say(f"{label}: trained in {duration(cost['seconds'])}")


def give_base_back(trainer: MODPOTrainer | OnPolicy, reference: ReferenceModel) -> None:
    """Take the adapter off, so that the next point starts from the same base without reading it again."""
    from peft import PeftModel

    from modpo.forward.logprobs import detach_packed_forward

    if isinstance(trainer.model, PeftModel) and not trainer.model.peft_config["default"].modules_to_save:
        base = trainer.model.unload()
        detach_packed_forward(base)
        for parameter in base.parameters():
            parameter.requires_grad_(parameter.is_floating_point())  # weights in 4 bit are whole numbers
        base.eval()
    else:
        reference.release()  # its own weights were trained
