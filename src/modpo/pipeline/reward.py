"""A reward learned from pairs: a scalar reward model, or a policy whose log-ratio is the reward.

`<output>/rewards/<objective>/` is the model or adapter, with `training_log.json` and a manifest.
"""

from __future__ import annotations

import gc
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modpo.base.artifact import Artifact
from modpo.base.errors import InputError, Problem
from modpo.base.files import locked, remove_unfinished
from modpo.base.progress import duration, say
from modpo.data.groups import PromptGroups, group_rows
from modpo.data.loading import load_groups
from modpo.data.prompt_group import UNNAMED
from modpo.data.rows import rows_from_list
from modpo.data.sources import open_rows
from modpo.data.tokens import identity as tokenizer_identity
from modpo.data.tokens import require_usable
from modpo.experiment.objectives import DRAWN, RewardSection, RewardTraining
from modpo.experiment.proxy import PROXY, REWARD
from modpo.experiment.sections import Experiment
from modpo.forward.packing_choice import require_fixed_rope, with_packing
from modpo.models.dtype_choice import with_dtype
from modpo.models.reference import ReferenceModel
from modpo.pipeline.reward_training import (
    RewardTask,
    implicit_config,
    reward_model_config,
    train_implicit_reward,
    train_reward_model,
)
from modpo.pipeline.sample import held_out_prompts
from modpo.rewards.accuracy import held_out_accuracy
from modpo.rewards.batch import RewardContext
from modpo.rewards.loading import load_reward
from modpo.scored.of_experiment import experiment_scorer

if TYPE_CHECKING:
    from trl import RewardConfig

    from modpo.training.config import MODPOConfig


def train_reward(experiment: Experiment, name: str, role: str = REWARD) -> Path:
    """Train an objective's reward or proxy on the pairs that its `train` names; kept when it is there already.

    `reward_model`: a sequence-classification model by trl.RewardTrainer, adapters merged. `implicit`: a policy by DPO.
    No prompt on which policies are measured is learned from. The manifest has `kind`, `pairs`, `cost`, for `implicit`
    its `beta`, and `held_out`: accuracy on held-out pairs, its standard error over prompts, how many of both.

    Args:
        role: REWARD or PROXY.

    Returns:
        `<output_dir>/rewards/<name>`, which `reward_model:` or `implicit:` names.

    Raises:
        InputError: nothing to train, bad rows or settings, before any model is loaded.
        IntegrityError: the folder holds a reward of other data or settings. NumericError: a number is not finite.
    """
    experiment = with_dtype(experiment)
    task = _task(experiment, name, role)
    config = _config(task)
    reference = ReferenceModel.of(experiment)
    require_usable(
        reference.tokenizer,
        conversational=task.learned.conversational,
        where=reference.where,
        template_kwargs=task.learned.template_kwargs,
    )
    if task.training.kind == "implicit":  # a policy, trained as policies are
        task = replace(task, experiment=with_packing(experiment, reference))
        config = _config(task)
    else:
        require_fixed_rope(reference, config.max_length or sys.maxsize, experiment.where("data"), "data.max_length")
    trained = Artifact(task.folder, _parts(task, config, reference), task.label, guarded=True)
    if trained.there() is None:
        with locked(experiment.output_dir):
            remove_unfinished(task.folder.parent)
            _train(task, config, reference, trained)
    return task.folder


def resolved_section(experiment: Experiment, name: str, folder: Path, role: str = REWARD) -> RewardSection:
    """The section of a reward that was trained into `folder`, with the folder in the place of `train`."""
    section: RewardSection = getattr(experiment.objectives[name], role)
    assert section.train is not None
    if section.train.kind == "implicit":
        beta = section.train.arguments.get("beta", experiment.training.beta)
        return replace(section, train=None, implicit=str(folder), beta=beta)
    return replace(section, train=None, reward_model=str(folder))


# --- what is learned ----------------------------------------------------------------------------------------


def _task(experiment: Experiment, name: str, role: str = REWARD) -> RewardTask:
    section: RewardSection | None = getattr(experiment.objectives.get(name), role, None)
    training = section.train if section else None
    if section is None or training is None:
        fix = f"add `{role}: {{train: {{kind: reward_model}}}}` to objectives.{name}"
        raise InputError(Problem(experiment.where(f"objectives.{name}"), name, f"has no {role} to train", fix))
    own = experiment.objectives[name].pairs if role == PROXY and training.path is None else None
    label_set = training.pairs or own or UNNAMED
    groups = _drawn(experiment, name) if label_set == DRAWN else _groups(experiment, training)
    counts, path = groups.label_sets, training.path or experiment.data.path
    if not counts.get(label_set):
        found = f"it has {', '.join(counts)}" if counts else "it has no pairs at all"
        fix = f"name one of its label sets in objectives.{name}.{role}.train.pairs, or other rows in its `path`"
        raise InputError(Problem(path, "pairs", f"no pair of the label set {label_set!r}; {found}", fix))
    n = experiment.data.eval_prompts if training.eval_prompts is None else training.eval_prompts
    paired = groups.select([i for i, group in enumerate(groups) if group.pairs.get(label_set)])
    learned, held_out = paired.split_held_out(n, experiment.data.split_seed)
    learned = learned.select(np.flatnonzero(~np.isin(learned.keys, held_out_prompts(experiment).keys)))
    if not len(learned):
        problem = f"no pair of the label set {label_set!r} is left to learn from"
        fix = "lower eval_prompts, or give pairs for more prompts than those that policies are measured on"
        raise InputError(Problem(path, "pairs", problem, fix))
    return RewardTask(experiment, name, role, section, training, label_set, learned, held_out)


def _groups(experiment: Experiment, training: RewardTraining) -> PromptGroups:
    data = experiment.data
    path, split = training.path, training.split or data.split
    rows = (
        open_rows(data.path, split=split, name=data.name, data_dir=data.data_dir)
        if path is None
        else open_rows(path, split=split)
    )
    return group_rows(
        rows,
        format=training.format or data.format,
        skip_empty=data.skip_empty,
        template_kwargs=data.chat_template_kwargs,
    )


def _drawn(experiment: Experiment, name: str) -> PromptGroups:
    """The data's responses with the pairs that are drawn from the objective's reward: those that MODPO trains on."""
    experiment = replace(experiment, objectives={name: experiment.objectives[name]})
    train, _ = load_groups(experiment)
    pairs = experiment_scorer(experiment).draw_pairs(train, name).open()["pairs"]
    rows = [
        {**group.prompt_row, "responses": list(group.responses), "pairs": {DRAWN: drawn}}
        for group, drawn in zip(train, pairs, strict=True)
    ]
    return group_rows(rows_from_list(rows, experiment.data.path))


# --- training -----------------------------------------------------------------------------------------------


def _config(task: RewardTask) -> RewardConfig | MODPOConfig:
    return implicit_config(task) if task.training.kind == "implicit" else reward_model_config(task)


def _parts(task: RewardTask, config: RewardConfig | MODPOConfig, reference: ReferenceModel) -> dict[str, Any]:
    """Everything that decides the weights, and the accuracy beside them."""
    experiment, data = task.experiment, task.experiment.data
    of_policy = {"training": experiment.training.deciding()} if task.training.kind == "implicit" else {}
    return {
        "kind": task.training.kind,
        "pairs": task.label_set,
        "learned": task.learned.fingerprint,
        "held_out": task.held_out.fingerprint,
        "model": reference.fingerprint,
        "tokenizer": tokenizer_identity(reference.tokenizer, data.max_length, data.max_prompt_length),
        "lora": asdict(experiment.lora) if experiment.lora else None,
        "arguments": task.training.arguments,
        "max_length": config.max_length,
        "seed": experiment.seed,
        **of_policy,
    }


def _train(task: RewardTask, config: Any, reference: ReferenceModel, trained: Artifact) -> None:
    # `of_data`: the data's own answers were learned from, so what they cost counts too.
    about = {"kind": task.training.kind, "pairs": task.label_set, "of_data": task.training.path is None}
    try:
        with trained.making(**about) as new:
            if task.training.kind == "implicit":
                new.about["beta"] = config.beta
                cost = train_implicit_reward(task, config, reference, new.folder)
            else:
                cost = train_reward_model(task, config, reference, new.folder)
            new.about["cost"] = cost.written()
            gc.collect()  # trainers hold their model in cycles: two would be in memory while the reward is tried
            new.about["held_out"] = held_out = _held_out(task, new.folder)
    finally:
        shutil.rmtree(task.work, ignore_errors=True)
    say(f"{task.label}: trained in {duration(cost.seconds)}, {_said(held_out)}")


# --- held-out accuracy --------------------------------------------------------------------------------------


def _held_out(task: RewardTask, folder: Path) -> dict[str, float] | None:
    """The trained reward, loaded as it will be for scoring, on the held-out pairs."""
    if not len(task.held_out):
        return None
    section = resolved_section(task.experiment, task.name, folder, task.role)
    context, where = RewardContext.of(task.experiment), task.experiment.where(task.field)
    reward = load_reward(section, context, where=where, name=task.name, field=task.field)
    return held_out_accuracy(reward, task.held_out, task.label_set)


def _said(held_out: dict[str, float] | None) -> str:
    if held_out is None:
        return "no held-out pair to try it on"
    return (
        f"orders {held_out['accuracy']:.1%} of {held_out['pairs']} held-out pairs as they are labelled "
        f"(± {held_out['se']:.1%}, {held_out['prompts']} prompts)"
    )
