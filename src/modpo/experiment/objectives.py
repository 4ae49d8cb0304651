"""What is optimised: an objective, the reward that measures it, and how that reward is trained where it is learned."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from modpo.base.text import redacted
from modpo.experiment.keys import DTYPES, FOLDER_OR_HUB, Rule, above, not_empty, one_of

DRAWN = "bradley_terry"  # `pairs` of an objective whose labels are drawn from its reward
CALIBRATIONS = ("none", "standardise", "bradley_terry")
NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")  # of an objective
FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

IS_FUNCTION = Rule(FUNCTION.fullmatch, "write package.module:function", "{!r} names no function")
SCALE = Rule(lambda value: value > 0, "give a number above 0; to turn an objective round, set `maximize: false`")
RANGE = Rule(lambda clip: len(clip) == 2 and clip[0] < clip[1], "give [low, high], low below high")
HELD_OUT = Rule(lambda n: n > 0, "hold out at least 1 prompt", "is {}, and nothing would be known of its accuracy")


@dataclass(frozen=True)
class RewardTraining:
    """A reward that is trained before it scores: `modpo reward`, a stage of the pipeline."""

    kind: Annotated[str, one_of(("reward_model", "implicit"))]
    """`reward_model`: a scalar sequence-classification model, by `trl.RewardTrainer`, used as `reward_model`.
    `implicit`: a policy trained by DPO on the pairs, used as `implicit`"""
    pairs: str | None = None
    """the label set to learn. If not set, `data`; of a proxy that learns from the experiment's own `data`, its
    objective's `pairs`, drawn ones too"""
    path: str | None = None
    """rows to learn from; if not set, those of `data`"""
    format: str | None = None
    """their layout; if not set, `data.format`"""
    split: str | None = None
    """of a data set on the Hub; if not set, `data.split`"""
    eval_prompts: Annotated[int | None, HELD_OUT] = None
    """held-out prompts with such pairs on which its accuracy is measured; if not set, `data.eval_prompts`"""
    arguments: dict[str, Any] = field(default_factory=dict)
    """fields of `trl.RewardConfig` (`reward_model`) or `modpo.MODPOConfig` (`implicit`)"""


@dataclass(frozen=True)
class RewardSection:
    """Where an objective's numbers come from: exactly one of the first six; the rest belongs to one of them."""

    function: Annotated[str | None, IS_FUNCTION] = None
    """a Python function, called as TRL calls reward functions: `f(prompts, completions, **fields)` returns one finite
    number per completion. It is looked for in the working directory too"""
    column: Annotated[str | None, not_empty("name a field of the data")] = None
    """a number per response in the data; see [layouts](#layouts)"""
    reward_model: Annotated[str | None, FOLDER_OR_HUB] = None
    """a sequence-classification model: a local folder or a name on the Hub. The reward is its logit; the log-odds of
    `label`, if it has several"""
    implicit: Annotated[str | None, FOLDER_OR_HUB] = None
    """a policy, as an adapter or model folder or a name on the Hub: the reward is beta (log pi - log pi_ref), which a
    DPO-trained policy has learned"""
    sum: Annotated[list[RewardSection] | None, not_empty("give at least one reward")] = None
    """a list of rewards that are added up, each times its `weight`"""
    train: RewardTraining | None = None
    """a reward that is trained first, by `modpo reward`; see [train](#train)"""
    clip: Annotated[list[float] | None, RANGE] = None
    """`[low, high]`: the raw reward is held within"""
    weight: float = 1.0
    """of a part of a `sum`"""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """passed on to the function. What looks like an access token is `***` in everything that is written; a function had
    better read it from the environment"""
    missing: Annotated[str, one_of(("error", "drop", "mean"))] = "error"
    """of a column: a response without a number is an `error`; or pairs that need it are `drop`ped; or it takes the
    `mean` of the others"""
    label: str | None = None
    """of a reward model with several labels: the one that is the reward"""
    max_length: Annotated[int | None, above(0)] = None
    """of a reward model: tokens that it reads; a longer prompt loses its beginning. If not set, what the model was made
    for"""
    batch_size: Annotated[int, above(0)] = 16
    """of a reward model: responses read at a time"""
    load_in_8bit: bool = False
    """of a reward model: with bitsandbytes, on a GPU"""
    beta: Annotated[float | None, above(0)] = None
    """of an implicit reward. If not set, the one that it was trained with, else `training.beta`"""
    reference: str | None = None
    """of an implicit reward: the model that is pi_ref. If not set, an adapter's base, else the experiment's model"""
    dtype: Annotated[str | None, one_of(DTYPES)] = None
    """of a reward model or an implicit reward; if not set, `model.dtype`"""

    @property
    def scores_new_text(self) -> bool:
        """Whether it can score answers that stand in no data."""
        return self.column is None and all(part.scores_new_text for part in self.sum or [])

    @property
    def description(self) -> str:
        """Where the numbers come from, in a few words."""
        if self.function is not None:
            kwargs = ", ".join(f"{name}={value!r}" for name, value in self.kwargs.items())
            text = redacted(self.function + (f" ({kwargs})" if kwargs else ""))
        elif self.sum is not None:
            text = " + ".join(f"{part.weight:g} * {part.description}" for part in self.sum)
        elif self.train is not None:
            text = f"{self.train.kind} trained on {self.train.pairs or 'pairs'}"
        else:
            kinds = {"column": self.column, "reward_model": self.reward_model, "implicit": self.implicit}
            text = next((f"{kind} {source}" for kind, source in kinds.items() if source is not None), "")
        return f"{text}, clipped to {self.clip}" if self.clip else text


@dataclass(frozen=True)
class Objective:
    """One thing to optimise: pairs that prefer it, a reward that measures it, or both."""

    name: str
    pairs: Annotated[str | None, not_empty(f"name a label set of the data, or `{DRAWN}`")] = None
    """a label set of the data whose pairs stand for this objective: `data` for plain chosen and rejected.
    `bradley_terry`: labels are drawn from its reward, one for each two responses of a prompt"""
    reward: RewardSection | None = None
    """what measures it; see [reward](#reward). An objective without `pairs` needs one"""
    maximize: bool = True
    """`false`: less is better"""
    calibration: Annotated[str, one_of(CALIBRATIONS)] = "none"
    """what makes rewards comparable before they are weighted; see [calibration](#calibration)"""
    scale: Annotated[float, SCALE] = 1.0
    """the margin reward is `scale` times the calibrated reward, with the sign of `maximize`. It decides how much one
    unit of this reward weighs against the others: `modpo inspect` shows how far each spreads that no model has to be
    read for; for the others there is `calibration`"""
    proxy: RewardSection | None = None
    """a [reward](#reward) for methods that score answers of their own, where `reward` or `pairs` tell of the answers in
    the data alone; see [proxies](#proxies)"""
    unit: str = ""
    """of the raw reward that measures policies, for tables and axes"""

    @property
    def sign(self) -> float:
        """What a calibrated reward is multiplied by before it enters the loss."""
        return self.scale if self.maximize else -self.scale

    @property
    def measures(self) -> bool:
        """Whether its own reward can measure policies, by answers that stand in no data."""
        return self.reward is not None and self.reward.scores_new_text
