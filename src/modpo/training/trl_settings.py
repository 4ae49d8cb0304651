"""TRL's settings that the loss of MODPO, or the way rows are read here, leaves no room for.

A setting that would change the loss is refused. One that changes no number, and has nothing left to act on, is said to
be without effect. All others are honoured: tests/training/test_trl_surface.py holds a list of every field of DPOConfig
and fails for one that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from typing import Any

from trl import DPOConfig

from modpo.base.errors import Problem
from modpo.base.progress import say_once
from modpo.training.loss import LOSS_TYPES

NOT_THE_LOSS = "with another value the loss would not be MODPO's"
# Fields that may have these values only, of which the first is the default.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "loss_weights": ((None, [1.0]), NOT_THE_LOSS),
    "f_divergence_type": (("reverse_kl",), NOT_THE_LOSS),
    "ld_alpha": ((None, 1.0), NOT_THE_LOSS),
    "use_weighting": ((False,), NOT_THE_LOSS),
    "sync_ref_model": ((False,), "reference log-probs are computed once"),
    "truncation_mode": (("keep_start",), "all responses of a prompt share what is kept of it"),
}
_ANOTHER_LOSS = "it is of a loss that is not MODPO's"
# Fields that are accepted with any value and act on nothing.
WITHOUT_EFFECT: dict[str, str] = {
    "dataset_num_proc": "rows are tokenized by one process, once, into the cache",
    "precompute_ref_batch_size": "the reference reads as many responses at a time as fit 4,096 tokens",
    "padding_free": "`packing` reads rows without padding",
    "label_smoothing": "sigmoid and hinge read no smoothed labels, as in TRL",
    "label_smoothing_factor": "it is of losses over labels, as in TRL",
    "f_alpha_divergence_coef": _ANOTHER_LOSS,
    "discopop_tau": _ANOTHER_LOSS,
    "ref_model_mixup_alpha": "the reference stays as it is",
    "ref_model_sync_steps": "the reference stays as it is",
}


def refused(args: DPOConfig) -> Iterator[Problem]:
    """A problem for each setting under which the loss would not be MODPO's, or that has nothing to act on here."""
    where = type(args).__name__
    if len(args.loss_type) != 1 or args.loss_type[0] not in LOSS_TYPES:
        fix = f"use one of {', '.join(LOSS_TYPES)}: the others divide or reorder, so the margin would be lost"
        yield Problem(where, "loss_type", f"is {args.loss_type}", fix)
    for name, (accepted, why) in REFUSED.items():
        value = getattr(args, name)
        if value not in accepted:
            yield Problem(where, name, f"is {value!r}", f"leave it at {accepted[0]!r}: {why}")
    if args.activation_offloading and args.device.type == "cpu":
        fix = "leave it out: activations are in the CPU's memory already"
        yield Problem(where, "activation_offloading", "there is no accelerator to offload from", fix)


def say_what_has_no_effect(args: DPOConfig, *, packing: bool) -> None:
    """A line for each setting that differs from its default and acts on nothing; once, however many trainers."""
    reasons = dict(WITHOUT_EFFECT)
    if packing:
        reasons["pad_to_multiple_of"] = "packed rows have no padding; set packing to False to pad"
    for name, why in reasons.items():
        value = getattr(args, name)
        if value != _default(name):
            say_once(f"warning: {name}={value!r} has no effect: {why}")


@cache
def _default(name: str) -> Any:
    (found,) = (field for field in fields(DPOConfig) if field.name == name)
    return None if found.default == "auto" else found.default  # DPOConfig resolves "auto" to None, but on a Neuron
