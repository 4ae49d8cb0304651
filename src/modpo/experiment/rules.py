"""What an experiment file may say beyond its types: the rules of its keys, and keys that depend on one another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from modpo.experiment.chat_settings import FIELD, reserved
from modpo.experiment.keys import rules
from modpo.experiment.methods import CONTINUOUS
from modpo.experiment.objectives import DRAWN, NAME, Objective, RewardSection
from modpo.experiment.sections import TrainingSection
from modpo.experiment.yaml_reader import BROKEN, SectionReader, join

FINDS_BATCH_SIZE = "auto_find_batch_size"  # of transformers.TrainingArguments
# What each source of a reward may say besides itself; `clip` and `weight` go with all.
OPTIONS = {
    "function": ("kwargs",),
    "column": ("missing",),
    "reward_model": ("label", "max_length", "batch_size", "load_in_8bit", "dtype"),
    "implicit": ("beta", "reference", "dtype"),
    "sum": (),
    "train": ("max_length", "batch_size", "dtype"),
}
ANY_SOURCE = ("clip", "weight")
ADD_REWARD = 'add `reward: "package.module:function"`, `reward: {column: ...}` or another source'
# What `training.arguments` must not say a second time.
ELSEWHERE = {f.name: f"training.{f.name}" for f in dataclasses.fields(TrainingSection)} | {
    "output_dir": "output_dir",
    "seed": "seed",
    "max_length": "data.max_length",
    "max_prompt_length": "data.max_prompt_length",
    "chat_template_kwargs": "data.chat_template_kwargs",
    "weights": "sweep.weights",
    "objective": "training.objective",
    "cache_dir": "cache_dir",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
}


def check_sections(shape: Any, reader: SectionReader) -> None:
    """Note in the reader what is wrong with the values that could be read."""
    _check_keys(shape, reader)
    _check_training(shape, reader)
    for problem, fix in reserved(_value(shape, f"data.{FIELD}") or {}):
        reader.report(f"data.{FIELD}", problem, fix)
    for section in ("training", "sft", "morlhf"):
        _check_arguments(_value(shape, f"{section}.arguments") or {}, f"{section}.arguments", reader)
    if isinstance(shape.objectives, dict):
        _check_objectives(shape, reader)
        _check_evaluation_rewards(shape, reader)


def _check_keys(shape: Any, reader: SectionReader) -> None:
    """Every key of every section by its own rules."""
    for path, section in _sections(shape, ""):
        for name, of_key in rules(section):
            here, value = join(path, name), getattr(section, name)
            if value not in (None, BROKEN) and not reader.is_broken(here):
                for rule in (rule for rule in of_key if not rule.accepts(value)):
                    reader.report(here, rule.problem.format(value), rule.fix)


def _sections(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The sections that stand in a value, each with its dotted path."""
    inside: dict[str, Any] = {}
    if dataclasses.is_dataclass(value):
        yield path, value
        inside = {join(path, field.name): getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, dict):
        inside = {join(path, name): item for name, item in value.items()}
    elif isinstance(value, list):
        inside = {f"{path}[{i}]": item for i, item in enumerate(value)}
    for here, item in inside.items():
        yield from _sections(item, here)


def _value(shape: Any, path: str) -> Any:
    """What stands at a dotted path; None if nothing does, or something that has a problem already."""
    for name in path.split("."):
        shape = getattr(shape, name, None)
    return None if shape is BROKEN else shape


def _check_training(shape: Any, reader: SectionReader) -> None:
    one_objective = isinstance(shape.objectives, dict) and len(shape.objectives) == 1
    if _value(shape, "sweep.mode") == CONTINUOUS:
        if (method := _value(shape, "sweep.method")) != "modpo":
            reader.report("sweep.mode", f"is continuous, with `method: {method}`", "use `mode: separate`")
        if shape.lora is not None and one_objective:
            reader.report("sweep.mode", "is continuous, with one objective", "use `mode: separate`")
    if _value(shape, "comparison.methods") is not None and one_objective:
        fix = "give two objectives or more, or leave `comparison` out"
        reader.report("comparison", "compares fronts, and there is one objective", fix)
    longest, prompt = _value(shape, "data.max_length"), _value(shape, "data.max_prompt_length")
    if longest is not None and prompt is not None and prompt >= longest:
        problem = f"is {prompt}, which leaves no room for a response in max_length {longest}"
        reader.report("data.max_prompt_length", problem, f"give a value below {longest}")
    for name in _value(shape, "training.arguments") or {}:
        if name in ELSEWHERE:
            fix = f"set `{ELSEWHERE[name]}` instead"
            reader.report(f"training.arguments.{name}", "has a place of its own", fix)


def _check_arguments(arguments: dict[str, Any], path: str, reader: SectionReader) -> None:
    """Nothing is published, and where memory runs out, the user is told what to lower: nothing is lowered unasked."""
    for name in arguments:
        if name == "push_to_hub" or name.startswith("hub_"):
            fix = "leave it out, and upload the folder of a policy when you have looked at it"
            reader.report(f"{path}.{name}", "would publish what is trained, and may hold a secret", fix)
    if FINDS_BATCH_SIZE in arguments:
        fix = "leave it out, and lower the batch size where memory runs out"
        reader.report(f"{path}.{FINDS_BATCH_SIZE}", "would change the batch size silently", fix)


def _check_objectives(shape: Any, reader: SectionReader) -> None:
    objectives: dict[str, Objective] = shape.objectives
    if not objectives:
        reader.report("objectives", "is empty", "name at least one objective")
    for name, objective in objectives.items():
        path = f"objectives.{name}"
        if not NAME.fullmatch(name):
            fix = "use 1 to 64 letters, digits, dots, underscores and hyphens"
            reader.report(path, "cannot be the name of an objective, for files are named after it", fix)
        if objective is not BROKEN:
            _check_objective(objective, path, reader)
    named = _value(shape, "training.objective")
    if named is not None and not reader.is_broken("objectives"):
        _check_named(named, objectives, reader)


def _check_objective(objective: Objective, path: str, reader: SectionReader) -> None:
    if isinstance(objective.reward, RewardSection):
        _check_reward(objective.reward, f"{path}.reward", reader)
    elif objective.reward is None and objective.pairs is None:
        reader.report(path, "has neither pairs nor a reward", f"{ADD_REWARD}, or `pairs: data`")
    elif objective.reward is None and objective.pairs == DRAWN:
        reader.report(path, "draws its pairs from a reward, but has none", ADD_REWARD)
    if isinstance(objective.proxy, RewardSection):
        _check_proxy(objective, objective.proxy, path, reader)
    _check_calibration(objective, f"{path}.calibration", reader)


def _check_proxy(objective: Objective, proxy: RewardSection, path: str, reader: SectionReader) -> None:
    if isinstance(objective.reward, RewardSection) and objective.reward.train is not None:
        fix = "leave it out: that reward can score new answers"
        reader.report(f"{path}.proxy", "would stand in for a reward that is learned already", fix)
    _check_reward(proxy, f"{path}.proxy", reader, drawn=objective.pairs == DRAWN)
    fix = "give a function, a reward model, an implicit reward or `train`"
    _check_scores_new_text(proxy, f"{path}.proxy", fix, reader)
    learned = None if reader.is_broken(f"{path}.proxy") else proxy.train
    if learned is not None and learned.pairs == DRAWN and (learned.path or learned.format or learned.split):
        fix = "leave `path`, `format` and `split` out, or name a label set of theirs in `pairs`"
        reader.report(f"{path}.proxy.train", "labels are drawn for the responses of `data`, and of no other rows", fix)


def _check_calibration(objective: Objective, path: str, reader: SectionReader) -> None:
    if objective.calibration == "none" or reader.is_broken(path):
        return
    if objective.reward is None:
        reader.report(path, "is of a reward, but the objective has none", ADD_REWARD)
    elif objective.calibration == "bradley_terry" and objective.pairs in (None, DRAWN):
        fix = "name a label set in `pairs`, or use `calibration: standardise`"
        reader.report(path, "is fitted on the data's pairs of this objective, and it has none", fix)


def _check_evaluation_rewards(shape: Any, reader: SectionReader) -> None:
    for name, reward in (_value(shape, "evaluation.rewards") or {}).items():
        path = f"evaluation.rewards.{name}"
        if name not in shape.objectives:
            reader.report(path, "is of no objective", f"use one of: {', '.join(shape.objectives)}")
        elif isinstance(reward, RewardSection):
            _check_reward(reward, path, reader)
            if not reader.is_broken(path) and reward.train is not None:
                fix = "train it in an experiment of its own, and name its folder in `reward_model` or `implicit`"
                reader.report(path, "is still to be trained", fix)
            _check_scores_new_text(reward, path, "give a function, a reward model or an implicit reward", reader)


def _check_scores_new_text(reward: RewardSection, path: str, fix: str, reader: SectionReader) -> None:
    if not reader.is_broken(path) and not reward.scores_new_text:
        reader.report(path, "is a column of the data, which cannot score new answers", fix)


def _check_reward(
    reward: RewardSection, path: str, reader: SectionReader, *, inside_sum: bool = False, drawn: bool = False
) -> None:
    """Note what is wrong with a reward whose keys are right, each by itself.

    Args:
        drawn: there are pairs drawn from another reward, which this one may learn.
    """
    if reader.is_broken(path):
        return
    sources = [source for source in OPTIONS if getattr(reward, source) is not None]
    if len(sources) != 1:
        problem = "has no source" if not sources else f"has {len(sources)} sources: {', '.join(sources)}"
        reader.report(path, problem, f"give exactly one of {', '.join(OPTIONS)}")
        return
    _check_options(sources[0], reward, path, reader)
    if reward.weight != 1.0 and not inside_sum:
        reader.report(f"{path}.weight", "is for the parts of a `sum`", "use the objective's `scale`")
    if reward.train is not None:
        _check_arguments(reward.train.arguments, f"{path}.train.arguments", reader)
        if reward.train.pairs == DRAWN and not drawn:
            problem = "would be drawn from the reward that is to be trained"
            reader.report(f"{path}.train.pairs", problem, "name a label set")
    for i, part in enumerate(reward.sum or []):
        _check_part(part, f"{path}.sum[{i}]", reader)


def _check_options(source: str, reward: RewardSection, path: str, reader: SectionReader) -> None:
    """What is set besides the source goes with it."""
    defaults = {f.name: f.default for f in dataclasses.fields(RewardSection)} | {"kwargs": {}}
    for name, default in defaults.items():
        if name not in (*OPTIONS, *OPTIONS[source], *ANY_SOURCE) and getattr(reward, name) != default:
            owners = [owner for owner, options in OPTIONS.items() if name in options]
            reader.report(f"{path}.{name}", f"is not for `{source}`, but for {', '.join(owners)}", "leave it out")


def _check_part(part: RewardSection, path: str, reader: SectionReader) -> None:
    if part.train is not None:
        fix = "train the part first"
        reader.report(path, "a reward that is trained cannot be part of a sum", fix)
    elif part.missing != "error":
        reader.report(path, "a reward that is with gaps cannot be part of a sum", "make it an objective of its own")
    else:
        _check_reward(part, path, reader, inside_sum=True)


def _check_named(named: str, objectives: dict[str, Objective], reader: SectionReader) -> None:
    with_pairs = [name for name, objective in objectives.items() if objective.pairs]
    if named not in objectives:
        reader.report("training.objective", f"{named!r} is no objective", f"use one of: {', '.join(objectives)}")
    elif named not in with_pairs:
        fix = f"name one of: {', '.join(with_pairs)}" if with_pairs else "leave it out"
        reader.report("training.objective", f"{named!r} has no pairs to train on", fix)
