"""`MODPOConfig`: TRL's DPOConfig with the preference vector."""

from __future__ import annotations

import json
import math
from argparse import SUPPRESS
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftConfig
from trl import DPOConfig

from modpo.base.errors import InputError, Problem
from modpo.base.progress import say_once
from modpo.base.simplex import Weights, read_weights
from modpo.experiment.chat_settings import FIELD, reserved
from modpo.experiment.primary import smallest_primary_weight
from modpo.experiment.sections import AUTO
from modpo.forward.packing_needs import Needs
from modpo.models.folders import default_cache_dir, device
from modpo.models.matmul_speed import matmul_speed
from modpo.training.trl_settings import refused

ONLY_OBJECTIVE = "preference"  # what the objective of the pairs is called where none is named


@dataclass
class MODPOConfig(DPOConfig):
    """`trl.DPOConfig` with the preference vector.

    `per_device_train_batch_size` counts prompts: all responses and pairs of a prompt are read together. The loss is the
    mean over the pairs of all prompts of an optimizer step.
    """

    weights: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Weight of each objective, by name; at least 0, sum 1. A command line gives it as JSON. Default: 1 "
            "for the one objective that the pairs are labelled by, which is DPO."
        },
    )
    objective: str | None = field(
        default=None,
        metadata={
            "help": "Objective k, whose pairs are trained on. Default: for each prompt, of the objectives with pairs "
            "the one with the largest weight; in rows of chosen and rejected, the first in `weights`."
        },
    )
    regression_below: float | None = field(
        default=None,
        metadata={
            "help": "Weight of objective k below which a prompt is trained on by regression on the weighted rewards, "
            "if k has a reward too. Default: 0, so that pairs are read wherever k has a weight; 1/K, K the number of "
            "objectives, for a continuous policy."
        },
    )
    anchor: float = field(
        default=0.0,
        metadata={
            "help": "Strength of a pull of each pair's mean log-ratio towards the reference, against both responses "
            "becoming unlikely. 0: the paper's loss."
        },
    )
    scale_loss_by_weight: bool = field(
        default=True,
        metadata={"help": "Multiply the loss by w_k: the same optimum, and a gradient bounded as w_k gets small."},
    )
    packing: Literal["auto", True, False] = field(
        default="auto",
        metadata={
            "help": "Read each prompt once for all its responses, without padding. 'auto': where the model can, else "
            "padded, which is said with the reason; True refuses such a model."
        },
    )
    max_packed_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens read in one forward pass: a batch with more is read in parts whose gradients add up to the "
            "same. Bounds the memory whatever the batch size. Default: 2048 on a CPU, 16384 elsewhere. Several "
            "processes read each batch in one pass, since they must make the same number of passes."
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens; a longer prompt loses its beginning. Default: prompts are kept whole, as in TRL, and rows "
            "whose prompt fills `max_length` are left out."
        },
    )
    skip_empty: bool = field(
        default=False,
        metadata={"help": "Leave out rows whose prompt or a response is blank, and count them; else they are errors."},
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Variables of the chat template for all rows, such as {'enable_thinking': false}. A row's own, in "
            "a column of this name, go before them."
        },
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Where reference log-probs and rewards are kept. Default: ~/.cache/modpo."},
    )

    bf16: bool | None = field(
        default=None,
        metadata={
            "help": "Mixed precision in bfloat16. Default: where this device multiplies it faster than float32, unless "
            "`fp16` is set; a model that is given by its name and trained by LoRA is then read in bfloat16 too."
        },
    )
    # What `bf16` was made where it was left out: a copy by `dataclasses.replace` is given both, and chooses again.
    chosen_bf16: bool | None = field(default=None, repr=False, metadata={"help": SUPPRESS})

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True  # bf16 on a CPU has to be asked for
        if self.bf16 is self.chosen_bf16:
            self.bf16 = None
        chooses = self.bf16 is None and not self.fp16
        self.chosen_bf16 = self._bf16_is_faster() if chooses else None
        if chooses:
            self.bf16 = self.chosen_bf16
        if self.weights is None:
            self.weights = {self.objective or ONLY_OBJECTIVE: 1.0}
        for name in ("weights", FIELD):
            setattr(self, name, _read_json(name, getattr(self, name)))
        super().__post_init__()
        if not isinstance(self.weights, dict) or not self.weights:
            raise InputError(Problem("MODPOConfig", "weights", f"is {self.weights!r}", "give {objective: weight, ...}"))
        self.weights = read_weights(self.weights, list(self.weights), where="MODPOConfig")
        problems = list(self._refused())
        if problems:
            raise InputError(problems)

    @property
    def chooses_dtype(self) -> bool:
        """Whether neither `bf16` nor `fp16` was given."""
        return self.chosen_bf16 is not None

    def _bf16_is_faster(self) -> bool:
        """Whether the device of training multiplies faster in bfloat16 than in float32; said once."""
        cache_dir = Path(self.cache_dir) if self.cache_dir else default_cache_dir()
        speed = matmul_speed(cache_dir, "cpu" if self.use_cpu else device())
        faster = speed.faster == "bfloat16"
        say_once(
            f"MODPOConfig: bf16 is left out, so it is {faster}: {speed.faster} is {speed.compared(speed.faster)} here"
        )
        return faster

    def _refused(self) -> Iterator[Problem]:
        """A problem for each setting under which the loss would not be MODPO's."""
        if not isinstance(self.chat_template_kwargs or {}, dict):
            yield Problem("MODPOConfig", FIELD, f"is {self.chat_template_kwargs!r}", "give {name: value}")
        for problem, fix in reserved(self.chat_template_kwargs or {}):
            yield Problem("MODPOConfig", FIELD, problem, fix)
        if self.objective is not None and self.objective not in self.vector:
            fix = f"use one of: {', '.join(self.vector)}"
            yield Problem("MODPOConfig", "objective", f"unknown objective {self.objective!r}", fix)
        if self.regression_below is not None and not 0 <= self.regression_below <= 1:
            yield Problem("MODPOConfig", "regression_below", f"is {self.regression_below}", "give a weight from 0 to 1")
        if self.packing not in (True, False, AUTO):
            yield Problem("MODPOConfig", "packing", f"is {self.packing!r}", "give True, False or 'auto'")
        if not 0 < self.beta < math.inf:
            yield Problem("MODPOConfig", "beta", f"is {self.beta}", "give a number above 0")
        if self.max_packed_tokens is not None and self.max_packed_tokens < 1:
            fix = "give a number above 0, or leave it out"
            yield Problem("MODPOConfig", "max_packed_tokens", f"is {self.max_packed_tokens}", fix)
        if not 0 <= self.anchor < math.inf:
            yield Problem("MODPOConfig", "anchor", f"is {self.anchor}", "give a number of 0 or more")
        if self.router_aux_loss_coef:
            fix = "leave it out: the router's auxiliary loss is no part of MODPO's loss, and stays off"
            yield Problem("MODPOConfig", "router_aux_loss_coef", f"is {self.router_aux_loss_coef}", fix)
        yield from refused(self)

    def smallest_primary_weight(self) -> float:
        """The weight from which on the pairs of objective k are read, where there is a choice."""
        return smallest_primary_weight(self.regression_below, len(self.vector), continuous=False)

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Variables of the chat template for all rows."""
        return self.chat_template_kwargs if isinstance(self.chat_template_kwargs, dict) else {}

    def needs(self, adapter: PeftConfig | None) -> Needs:
        """What training with an adapter that is still to be put on the model needs of how it is read."""
        adapters = () if adapter is None else (adapter,)
        return Needs(self.max_length, self.neftune_noise_alpha, adapters, not self.disable_dropout)

    @property
    def packs(self) -> bool:
        """`packing` of a trainer's arguments, where 'auto' has been made True or False."""
        assert self.packing != AUTO
        return bool(self.packing)

    @property
    def vector(self) -> Weights:
        """The preference vector, read: objectives in the order of `weights`."""
        assert isinstance(self.weights, dict)
        return self.weights


def _read_json(name: str, value: Any) -> Any:
    """A field's value; of text, as command lines give it, what it says.

    Raises:
        InputError: the text is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        fix = """write it as JSON, in quotes: '{"name": value}'"""
        raise InputError(Problem("MODPOConfig", name, f"is {value!r}", fix)) from None
