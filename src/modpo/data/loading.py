"""An experiment's training and held-out prompt groups, checked against what its objectives need."""

from __future__ import annotations

import numpy as np

from modpo.base.errors import InputError, Problem
from modpo.base.progress import say, say_once
from modpo.data.formats import PROMPTS, find_layout, is_function
from modpo.data.groups import PromptGroups, group_rows
from modpo.data.sources import open_rows
from modpo.experiment.sections import Experiment, RewardSection


def load_groups(experiment: Experiment, *, keep: bool = False) -> tuple[PromptGroups, PromptGroups]:
    """The experiment's training and held-out prompt groups, checked. No model is needed for it.

    Args:
        keep: whether what is found of the rows is written into the cache, so that they are read once.

    Raises:
        InputError: bad rows, nothing to train an objective on, or more held-out prompts than there are.
    """
    check_layouts(experiment)
    data = experiment.data
    if data.format == PROMPTS:
        fix = "name rows with answers; `prompts` is for `eval_format`"
        raise InputError(Problem(experiment.where("data.format"), "data.format", "no answers to train on", fix))
    rows = open_rows(data.path, split=data.split, name=data.name, data_dir=data.data_dir)
    groups = group_rows(
        rows,
        format=data.format,
        columns=required_columns(experiment),
        skip_empty=data.skip_empty,
        template_kwargs=data.chat_template_kwargs,
        cache_dir=experiment.cache_dir,
        keep=keep,
    )
    if data.eval_path is not None:
        held_out = load_held_out(experiment)
        groups = _without(groups, held_out, data.path)
    else:
        if data.eval_prompts >= len(groups):
            problem = f"{data.eval_prompts} held-out prompts of {len(groups)} leave none to train on"
            fix = "lower it, or name held-out rows in `data.eval_path`"
            raise InputError(Problem(experiment.where("data.eval_prompts"), "data.eval_prompts", problem, fix))
        groups, held_out = groups.split_held_out(data.eval_prompts, data.split_seed)
    if data.max_prompts is not None and data.max_prompts < len(groups):
        groups = groups.select(range(data.max_prompts))
    _require_pairs(experiment, groups)
    for warning in groups.warnings:
        say_once(f"warning: {data.path}: {warning}")
    return groups, held_out


def load_held_out(experiment: Experiment) -> PromptGroups:
    """The held-out prompt groups of an experiment that has them in a file of their own."""
    data = experiment.data
    assert data.eval_path is not None
    rows = open_rows(data.eval_path, split=data.eval_split or data.split, name=data.name, data_dir=data.data_dir)
    format, columns = data.eval_format or data.format, required_columns(experiment)
    held_out = group_rows(
        rows,
        format=format,
        columns=columns,
        unanswered=True,
        skip_empty=data.skip_empty,
        template_kwargs=data.chat_template_kwargs,
    )
    return held_out.select(range(min(len(held_out), data.eval_prompts)))


def check_layouts(experiment: Experiment) -> None:
    """Import every function that the experiment names as a layout, before any row is read.

    Raises:
        InputError: one that cannot be had or called; the experiment's line and key are named.
    """
    named = {"data.format": experiment.data.format, "data.eval_format": experiment.data.eval_format}
    named |= {"sft.format": experiment.sft.format} if experiment.sft else {}
    named |= {"sample.format": experiment.sample.format} if experiment.sample else {}
    for name, objective in experiment.objectives.items():
        for role, reward in (("reward", objective.reward), ("proxy", objective.proxy)):
            if reward and reward.train:
                named[f"objectives.{name}.{role}.train.format"] = reward.train.format
    for field, format in named.items():
        if format and is_function(format):
            find_layout(format, where=experiment.where(field), field=field)


def _without(groups: PromptGroups, held_out: PromptGroups, path: str) -> PromptGroups:
    """The groups whose prompts are not measured on: nothing is trained on those."""
    kept = np.flatnonzero(~np.isin(groups.keys, held_out.keys))
    if not len(kept):
        problem, fix = "every prompt is held out as well", "name other rows in `data.eval_path`"
        raise InputError(Problem(path, "prompt", problem, fix))
    if len(kept) < len(groups):
        say(f"warning: {path}: {len(groups) - len(kept)} prompts are held out as well: they are not trained on")
    return groups if len(kept) == len(groups) else groups.select(kept)


def required_columns(experiment: Experiment) -> list[str]:
    """The numbers that every response of the data must have."""
    rewards = [objective.reward for objective in experiment.objectives.values() if objective.reward]
    return list(dict.fromkeys(column for reward in rewards for column in _columns(reward)))


def _columns(reward: RewardSection) -> list[str]:
    own = [reward.column] if reward.column and reward.missing == "error" else []
    return own + [column for part in reward.sum or [] for column in _columns(part)]


def _require_pairs(experiment: Experiment, groups: PromptGroups) -> None:
    """Every label set that an objective names is there, and what needs two responses has them."""
    problems = []
    counts = groups.label_sets
    for name, label_set in experiment.label_sets.items():
        if not counts.get(label_set):
            fix = "give rows with pairs, or draw them from a reward"
            fix = f"name one of its label sets; it has {', '.join(counts)}" if counts else fix
            problem = f"no pair of the label set {label_set!r} in {len(groups)} prompts"
            problems.append(Problem(experiment.data.path, f"objectives.{name}.pairs", problem, fix))
    if not experiment.label_sets and not (groups.response_counts > 1).any():
        fix = "give prompts with two responses or more"
        problems.append(Problem(experiment.data.path, "responses", f"nothing to compare in {len(groups)} prompts", fix))
    if problems:
        raise InputError(problems)
