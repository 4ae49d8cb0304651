"""Between trained points: coefficients c_p >= 0 with sum 1 and sum_p c_p w_p = w, and what is done with them.

log pi_w is affine in w, so with these coefficients log pi_w = sum_p c_p log pi_p up to a function of the prompt:
exactly for optimal policies when whole answers are weighed. Token by token while decoding, and in weight space, it
is an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modpo.base.errors import InputError, Problem
from modpo.base.simplex import Weights

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

    ReadPolicy = Callable[[Tensor, Any], tuple[Tensor, Any]]

NEGLIGIBLE = 1e-9


def coefficients(vectors: Sequence[Weights], weights: Weights) -> list[float] | None:
    """How much of each vector makes `weights`, taken from as near as possible; None outside their convex hull.

    Minimises sum_p c_p |w_p - w|^2: a vector that is there is taken alone, else the corners of a simplex around it
    that holds no other vector, K of them at most.
    """
    from scipy.optimize import linprog

    names = list(weights)
    points = np.array([[vector[name] for name in names] for vector in vectors])  # (P, K)
    target = np.array([weights[name] for name in names])
    equations = np.vstack([points.T, np.ones(len(points))])
    # The simplex method ends in a corner of what is feasible: at most as many coefficients as equations that count.
    solved = linprog(
        ((points - target) ** 2).sum(1), A_eq=equations, b_eq=[*target, 1.0], bounds=(0, None), method="highs-ds"
    )
    if not solved.success:
        return None
    return [float(c) if c > NEGLIGIBLE else 0.0 for c in solved.x]


class LogitInterpolation:
    """A `transformers.LogitsProcessor`: next-token log-probs of several policies, averaged with coefficients.

        log p(next) = sum_p c_p log pi_p(next | prompt, answer so far) + a constant

    The model that generates is one of the policies; the others are read here, each with a cache of its own. For one
    call of `generate`, greedy or sampled: `model.generate(..., logits_processor=[interpolation])`. Not for beams.

    Args:
        own: the generating policy's coefficient.
        others: of each other policy, its coefficient and a function (input_ids (n, T), its cache) -> (logits (n, V),
            cache). It gets the whole prompts and None first, then the new tokens, (n, 1).
    """

    def __init__(self, own: float, others: Sequence[tuple[float, ReadPolicy]]) -> None:
        self._own, self._others = own, list(others)
        self._caches: list[Any] = [None] * len(self._others)
        self._read: Tensor | None = None  # input_ids that the others have read

    @classmethod
    def of_adapters(
        cls, model: PeftModel, coefficients: Mapping[str, float], attention_mask: Tensor | None = None
    ) -> LogitInterpolation:
        """Between adapters of one model, of which the active one generates.

        Args:
            model: in evaluation mode, with the adapters loaded and one of them active.
            coefficients: by adapter; `__base__` is the model without any.
            attention_mask: (n, T) of the prompts where they are padded, on the left.

        Raises:
            InputError: an adapter that is not there, or none of them active.
        """
        active = model.active_adapters
        known = {*model.peft_config, "__base__"}
        if unknown := [name for name in coefficients if name not in known]:
            fix = f"use some of: {', '.join(sorted(known))}"
            raise InputError(Problem("LogitInterpolation", unknown[0], "no such adapter", fix))
        if len(active) != 1 or active[0] not in coefficients:
            fix = "call `set_adapter` with one of those that are interpolated"
            raise InputError(Problem("LogitInterpolation", "model", f"{', '.join(active)} active", fix))
        others = [
            (c, _adapter_reader(model, name, attention_mask))
            for name, c in coefficients.items()
            if name != active[0] and c != 0
        ]
        return cls(coefficients[active[0]], others)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: (n, V) logits of the generating policy; returns (n, V) log-probs up to a constant.

        Raises:
            ValueError: what was generated so far is not what was read: another call of `generate`, or beams.
        """
        read = 0 if self._read is None else self._read.shape[1]
        if self._read is not None and not (input_ids.shape[1] > read and input_ids[:, :read].equal(self._read)):
            raise ValueError("a LogitInterpolation is for one call of generate, without beams: make another one")
        mixed = self._own * scores.float().log_softmax(-1)
        for i, (coefficient, policy) in enumerate(self._others):
            logits, self._caches[i] = policy(input_ids[:, read:], self._caches[i])
            mixed = mixed + coefficient * logits.float().log_softmax(-1)
        self._read = input_ids
        return mixed


def _adapter_reader(model: PeftModel, adapter: str, attention_mask: Tensor | None) -> ReadPolicy:
    """Reads one adapter's policy, whichever is active: PEFT takes the adapter of each row with the row."""
    import torch

    def read(input_ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        past = cache.get_seq_length() if cache is not None else 0
        width = past + input_ids.shape[1]
        mask = input_ids.new_ones(len(input_ids), width)
        if attention_mask is not None:
            mask[:, : attention_mask.shape[1]] = attention_mask
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, past:]
        with torch.no_grad():
            out = model(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                adapter_names=[adapter] * len(input_ids),
            )
        return out.logits[:, -1], out.past_key_values

    return read


def hull_problem(vectors: Mapping[str, Weights]) -> str:
    """What the trained points span, for an error."""
    bounds = []
    for name in next(iter(vectors.values())):
        values = [vector[name] for vector in vectors.values()]
        bounds.append(f"{name} {min(values):.3g} to {max(values):.3g}")
    return ", ".join(bounds)
