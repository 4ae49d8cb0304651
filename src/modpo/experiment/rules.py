"""What an experiment file may say beyond its types: ranges, choices, and keys that depend on one another."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modpo.base.simplex import Weights
from modpo.experiment.methods import CONTINUOUS, METHODS, MODES
from modpo.experiment.primary import is_trainable
from modpo.experiment.sections import DRAWN, Objective, RewardSection, RewardTraining, TrainingSection
from modpo.experiment.yaml_reader import BROKEN, SectionReader

NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")
LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes, of Linux and most other systems
FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
DTYPES = ("bfloat16", "float16", "float32")
LOSS_TYPES = ("sigmoid", "hinge")  # modpo.training.loss.LOSS_TYPES, without importing torch
CALIBRATIONS = ("none", "standardise", "bradley_terry")  # modpo.scored.calibration.METHODS, without importing numpy
MISSING = ("error", "drop", "mean")
FINDS_BATCH_SIZE = "auto_find_batch_size"  # of transformers.TrainingArguments
KINDS = ("reward_model", "implicit")  # of rewards that are trained
ENGINES = ("auto", "transformers", "vllm")
ALGORITHMS = ("rloo", "grpo")  # of TRL
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


@dataclass(frozen=True)
class Rule:
    """Which values a key may have."""

    accepts: Callable[[Any], bool]
    expected: str


def _above(low: float) -> Rule:
    return Rule(lambda value: value > low, f"above {low:g}")


def _at_least(low: float) -> Rule:
    return Rule(lambda value: value >= low, f"at least {low:g}")


def _one_of(choices: tuple[str, ...]) -> Rule:
    return Rule(lambda value: value in choices, f"one of: {', '.join(choices)}")


def _is_path(text: str) -> bool:
    """Whether a text can name a file or a model: not blank, no NUL, no half of a character, nothing too long."""
    try:
        size, parts = len(os.fsencode(text)), [len(os.fsencode(part)) for part in re.split(r"[/\\]", text)]
    except UnicodeEncodeError:
        return False
    return bool(text.strip()) and "\0" not in text and size < LONGEST_PATH and max(parts) <= LONGEST_NAME


NAMED = Rule(_is_path, "a name or path")
SEED = Rule(lambda value: 0 <= value < 2**32, "from 0 to 4294967295")

RULES = {
    "model.model_name_or_path": NAMED,
    "model.dtype": _one_of(DTYPES),
    "lora.r": _at_least(1),
    "lora.lora_alpha": _above(0),
    "lora.lora_dropout": Rule(lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "data.path": NAMED,
    "data.eval_path": NAMED,
    "data.eval_prompts": _at_least(0),
    "data.max_prompts": _at_least(1),
    "data.max_length": _at_least(2),
    "data.max_prompt_length": _at_least(1),
    "sft.path": NAMED,
    "sft.eval_prompts": _at_least(0),
    "sample.prompts": NAMED,
    "sample.max_prompts": _at_least(1),
    "sample.held_out": _at_least(0),
    "sample.responses_per_prompt": _at_least(2),
    "sample.max_new_tokens": _at_least(1),
    "sample.temperature": _above(0),
    "sample.engine": _one_of(ENGINES),
    "sample.seed": SEED,
    "sweep.method": Rule(
        lambda value: value in METHODS and METHODS[value].mode == "separate",
        f"one of: {', '.join(name for name, method in METHODS.items() if method.mode == 'separate')}",
    ),
    "sweep.mode": _one_of(MODES),
    "sweep.concentration": _above(0),
    "sweep.spread": _above(0),
    "sweep.prompts_per_draw": _at_least(1),
    "morlhf.algorithm": _one_of(ALGORITHMS),
    "morlhf.learning_rate": _above(0),
    "morlhf.max_steps": _at_least(1),
    "morlhf.num_generations": _at_least(2),
    "morlhf.per_device_train_batch_size": _at_least(2),
    "morlhf.max_completion_length": _at_least(1),
    "best_of_n.n": _at_least(1),
    "training.beta": _above(0),
    "training.regression_below": Rule(lambda value: 0 <= value <= 1, "from 0 to 1"),
    "training.anchor": Rule(lambda value: 0 <= value < math.inf, "a number of 0 or more"),
    "training.loss_type": _one_of(LOSS_TYPES),
    "training.learning_rate": _above(0),
    "training.warmup_steps": Rule(lambda value: value >= 0, "0 or more"),
    "training.num_train_epochs": _above(0),
    "training.max_steps": Rule(lambda value: value >= 1 or value == -1, "at least 1, or -1 for no limit"),
    "training.per_device_train_batch_size": _at_least(1),
    "training.gradient_accumulation_steps": _at_least(1),
    "training.weight_decay": _at_least(0),
    "training.max_grad_norm": _at_least(0),
    "training.logging_steps": _at_least(1),
    "training.save_steps": _at_least(0),
    "training.save_total_limit": _at_least(1),
    "evaluation.max_new_tokens": _at_least(1),
    "evaluation.temperature": _above(0),
    "evaluation.samples_per_prompt": _at_least(1),
    "evaluation.batch_size": _at_least(1),
    "evaluation.bootstrap": _at_least(1),
    "evaluation.confidence": Rule(lambda value: 0 < value < 1, "above 0 and below 1"),
    "evaluation.report_prompts": _at_least(0),
    "evaluation.seed": SEED,
    "output_dir": NAMED,
    "cache_dir": NAMED,
    "seed": SEED,
}

# What `training.arguments` must not say a second time.
ELSEWHERE = {f.name: f"training.{f.name}" for f in dataclasses.fields(TrainingSection)} | {
    "output_dir": "output_dir",
    "seed": "seed",
    "max_length": "data.max_length",
    "max_prompt_length": "data.max_prompt_length",
    "weights": "sweep.weights",
    "objective": "training.objective",
    "cache_dir": "cache_dir",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
}


def check_sections(shape: Any, reader: SectionReader) -> None:
    """Note in the reader what is wrong with the values that could be read."""
    for path, rule in RULES.items():
        value = _value(shape, path)
        if value is not None and not rule.accepts(value):
            reader.report(path, f"is {value!r:.80}", f"give a value that is {rule.expected}")
    _check_training(shape, reader)
    _check_comparison(shape, reader)
    if isinstance(shape.objectives, dict):
        _check_objectives(shape, reader)
        _check_evaluation_rewards(shape, reader)


def _value(shape: Any, path: str) -> Any:
    """What stands at a dotted path; None if nothing does, or something that has a problem already."""
    for name in path.split("."):
        shape = getattr(shape, name, None)
    return None if shape is BROKEN else shape


def _check_training(shape: Any, reader: SectionReader) -> None:
    if _value(shape, "sweep.mode") == CONTINUOUS:
        if (method := _value(shape, "sweep.method")) != "modpo":
            reader.report("sweep.mode", f"is continuous, with `method: {method}`", "use `mode: separate`")
        if shape.lora is not None and isinstance(shape.objectives, dict) and len(shape.objectives) == 1:
            reader.report("sweep.mode", "is continuous, with one objective", "use `mode: separate`")
    longest, prompt = _value(shape, "data.max_length"), _value(shape, "data.max_prompt_length")
    if longest is not None and prompt is not None and prompt >= longest:
        problem = f"is {prompt}, which leaves no room for a response in max_length {longest}"
        reader.report("data.max_prompt_length", problem, f"give a value below {longest}")
    for name in _value(shape, "training.arguments") or {}:
        if name in ELSEWHERE:
            fix = f"set `{ELSEWHERE[name]}` instead"
            reader.report(f"training.arguments.{name}", "has a place of its own", fix)
    for section in ("training", "sft", "morlhf"):
        _check_arguments(_value(shape, f"{section}.arguments") or {}, f"{section}.arguments", reader)


def _check_comparison(shape: Any, reader: SectionReader) -> None:
    methods, seeds = _value(shape, "comparison.methods"), _value(shape, "comparison.seeds")
    for method in methods or []:
        if method not in METHODS:
            reader.report("comparison.methods", f"names {method!r:.80}", f"use some of: {', '.join(METHODS)}")
    for seed in seeds or []:
        if not SEED.accepts(seed):
            reader.report("comparison.seeds", f"has {seed}", f"give numbers {SEED.expected}")
    for name, values in (("methods", methods), ("seeds", seeds)):
        if values is not None and (not values or len(set(values)) < len(values)):
            problem = "has one twice" if values else "is empty"
            reader.report(f"comparison.{name}", problem, "name at least one, each once")
    if methods is not None and isinstance(shape.objectives, dict) and len(shape.objectives) == 1:
        fix = "give two objectives or more, or leave `comparison` out"
        reader.report("comparison", "compares fronts, and there is one objective", fix)


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
    if objective.scale is not BROKEN and not (objective.scale > 0 and math.isfinite(objective.scale)):
        fix = "give a number above 0; to turn an objective round, set `maximize: false`"
        reader.report(f"{path}.scale", f"is {objective.scale:g}", fix)
    if objective.pairs is not None and objective.pairs is not BROKEN and not objective.pairs.strip():
        reader.report(f"{path}.pairs", "is empty", f"name a label set of the data, or `{DRAWN}`")
    if isinstance(objective.reward, RewardSection):
        _check_reward(objective.reward, f"{path}.reward", reader)
    elif objective.reward is None and objective.pairs is None:
        reader.report(path, "has neither pairs nor a reward", f"{ADD_REWARD}, or `pairs: data`")
    elif objective.reward is None and objective.pairs == DRAWN:
        reader.report(path, "draws its pairs from a reward, but has none", ADD_REWARD)
    if isinstance(objective.proxy, RewardSection):
        _check_proxy(objective, objective.proxy, path, reader)
    _check_calibration(objective, path, reader)


def _check_proxy(objective: Objective, proxy: RewardSection, path: str, reader: SectionReader) -> None:
    if isinstance(objective.reward, RewardSection) and objective.reward.train is not None:
        fix = "leave it out: that reward can score new answers"
        reader.report(f"{path}.proxy", "would stand in for a reward that is learned already", fix)
    _check_reward(proxy, f"{path}.proxy", reader, drawn=objective.pairs == DRAWN)
    if reader.is_broken(f"{path}.proxy"):
        return
    if not proxy.scores_new_text:
        fix = "give a function, a reward model, an implicit reward or `train`"
        reader.report(f"{path}.proxy", "is a column of the data, which cannot score new answers", fix)
    learned = proxy.train
    if learned is not None and learned.pairs == DRAWN and (learned.path or learned.format or learned.split):
        fix = "leave `path`, `format` and `split` out, or name a label set of theirs in `pairs`"
        reader.report(f"{path}.proxy.train", "labels are drawn for the responses of `data`, and of no other rows", fix)


def _check_calibration(objective: Objective, path: str, reader: SectionReader) -> None:
    method, path = objective.calibration, f"{path}.calibration"
    if method is BROKEN or method == "none":
        return
    if method not in CALIBRATIONS:
        reader.report(path, f"is {method!r}", f"use one of: {', '.join(CALIBRATIONS)}")
    elif objective.reward is None:
        reader.report(path, "is of a reward, but the objective has none", ADD_REWARD)
    elif method == "bradley_terry" and objective.pairs in (None, DRAWN):
        fix = "name a label set in `pairs`, or use `calibration: standardise`"
        reader.report(path, "is fitted on the data's pairs of this objective, and it has none", fix)


def _check_reward(
    reward: RewardSection, path: str, reader: SectionReader, *, inside_sum: bool = False, drawn: bool = False
) -> None:
    """Note what is wrong with a reward.

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
    (source,) = sources
    for name in _given_options(reward):
        if name not in (*OPTIONS[source], *ANY_SOURCE):
            owners = [owner for owner, options in OPTIONS.items() if name in options]
            reader.report(f"{path}.{name}", f"is not for `{source}`, but for {', '.join(owners)}", "leave it out")
    if reward.weight != 1.0 and not inside_sum:
        reader.report(f"{path}.weight", "is for the parts of a `sum`", "use the objective's `scale`")
    clip = reward.clip
    if clip is not None and not (len(clip) == 2 and clip[0] < clip[1]):
        reader.report(f"{path}.clip", f"is {clip}", "give [low, high], low below high")
    _check_source(source, reward, path, reader)
    if source == "train" and reward.train is not None and reward.train.pairs == DRAWN and not drawn:
        fix = "name a label set"
        reader.report(f"{path}.train.pairs", "would be drawn from the reward that is to be trained", fix)


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
            elif not reader.is_broken(path) and not reward.scores_new_text:
                fix = "give a function, a reward model or an implicit reward"
                reader.report(path, "is a column of the data, which cannot score new answers", fix)


def _given_options(reward: RewardSection) -> list[str]:
    """The keys besides the source that the file sets."""
    defaults = {f.name: f.default for f in dataclasses.fields(RewardSection)} | {"kwargs": {}}
    return [name for name in defaults if name not in OPTIONS and getattr(reward, name) != defaults[name]]


def _check_source(source: str, reward: RewardSection, path: str, reader: SectionReader) -> None:
    value = getattr(reward, source)
    if source == "function" and not FUNCTION.fullmatch(value):
        reader.report(f"{path}.function", f"{value!r} names no function", "write package.module:function")
    if source == "column" and not value.strip():
        reader.report(f"{path}.column", "is empty", "name a field of the data")
    if source in ("reward_model", "implicit") and not NAMED.accepts(value):
        reader.report(f"{path}.{source}", f"is {value!r:.80}", "give a local folder or a name on the Hub")
    if reward.missing not in MISSING:
        reader.report(f"{path}.missing", f"is {reward.missing!r}", f"use one of: {', '.join(MISSING)}")
    if reward.dtype is not None and reward.dtype not in DTYPES:
        reader.report(f"{path}.dtype", f"is {reward.dtype!r}", f"use one of: {', '.join(DTYPES)}")
    for name in ("max_length", "batch_size", "beta"):
        given = getattr(reward, name)
        if given is not None and not given > 0:
            reader.report(f"{path}.{name}", f"is {given:g}", "give a number above 0")
    if source == "train":
        _check_training_of(value, f"{path}.train", reader)
    if source == "sum":
        _check_sum(value, f"{path}.sum", reader)


def _check_training_of(train: RewardTraining, path: str, reader: SectionReader) -> None:
    if train.kind not in KINDS:
        reader.report(f"{path}.kind", f"is {train.kind!r}", f"use one of: {', '.join(KINDS)}")
    if train.eval_prompts is not None and train.eval_prompts < 1:
        problem = f"is {train.eval_prompts}, and nothing would be known of its accuracy"
        reader.report(f"{path}.eval_prompts", problem, "hold out at least 1 prompt")
    _check_arguments(train.arguments, f"{path}.arguments", reader)


def _check_sum(parts: list[RewardSection], path: str, reader: SectionReader) -> None:
    if not parts:
        reader.report(path, "is empty", "give at least one reward")
    for i, part in enumerate(parts):
        if part.train is not None or part.missing != "error":
            what = "trained" if part.train is not None else "with gaps"
            fix = "make it an objective of its own" if part.train is None else "train the part first"
            reader.report(f"{path}[{i}]", f"a reward that is {what} cannot be part of a sum", fix)
        else:
            _check_reward(part, f"{path}[{i}]", reader, inside_sum=True)


def _check_named(named: str, objectives: dict[str, Objective], reader: SectionReader) -> None:
    with_pairs = [name for name, objective in objectives.items() if objective.pairs]
    if named not in objectives:
        reader.report("training.objective", f"{named!r} is no objective", f"use one of: {', '.join(objectives)}")
    elif named not in with_pairs:
        fix = f"name one of: {', '.join(with_pairs)}" if with_pairs else "leave it out"
        reader.report("training.objective", f"{named!r} has no pairs to train on", fix)


def trainable_problem(weights: Weights, objectives: dict[str, Objective], named: str | None = None) -> str | None:
    """Why nothing can be trained at a vector: too little is known of an objective with a weight.

    One objective may enter by its pairs, every other needs a reward.
    """
    with_pairs = {name for name, objective in objectives.items() if objective.pairs}
    with_reward = {name for name, objective in objectives.items() if objective.reward}
    if is_trainable(weights, with_pairs, with_reward, named):
        return None
    unscored = [name for name, weight in weights.items() if weight > 0 and name not in with_reward]
    others = f" beside {named}, which `training.objective` names" if named in weights and len(unscored) == 1 else ""
    verb = "have" if len(unscored) > 1 else "has"
    return f"{' and '.join(unscored)} {verb} pairs but no reward{others}, and only one objective enters by its pairs"
