"""A reward written as a Python function, called the way TRL calls reward functions."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any, ClassVar

from modpo.base.errors import InputError, ModpoError, Problem, is_out_of_memory
from modpo.base.text import without_secrets
from modpo.base.user_function import (
    Refusal,
    depends_on,
    described,
    import_function,
    refused_at,
    signature_of,
    source_identity,
)
from modpo.data.prompt_group import Text
from modpo.rewards.batch import RewardBatch, check_scores

__all__ = ["FunctionReward", "depends_on", "identified_by"]

RETURNS = "return one finite number per completion"


def identified_by(**settings: Callable[[Any], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark arguments of a reward function that are settings, and say what of each changes its numbers.

    With `@identified_by(model=weights_of)`, `weights_of(model)` stands in the reward's identity, and so in the cache
    key, in place of the argument: JSON, never a path. It is called when the reward is built, with the value in
    `kwargs` or the default, and raises InputError for a value that cannot be used. A setting comes from nowhere else:
    a field of the data that happens to have its name is not passed on.
    """

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        unknown = settings.keys() - inspect.signature(function).parameters.keys()
        if unknown:
            raise TypeError(f"{function.__name__} has no argument {min(unknown)!r}")
        function.reward_settings = settings  # type: ignore[attr-defined]
        return function

    return mark


class FunctionReward:
    """`function(prompts=[...], completions=[...], **fields, **columns, **kwargs)`, one number per completion.

    Prompts and completions are strings, or lists of messages for conversational data. Fields and columns of
    the data are lists as long as `completions`: those the signature names, or all if it takes `**kwargs`.

    The identity holds the source of the function's module, the versions of its distribution and of those that
    `depends_on` names, and the kwargs, in the words of `identified_by`. Modules that the function imports are not
    followed.
    """

    scores_new_text: ClassVar[bool] = True

    def __init__(
        self, reference: str, kwargs: dict[str, Any] | None = None, *, where: str, name: str, field: str
    ) -> None:
        """Import the function and check its signature.

        Args:
            reference: "package.module:function"; looked for in the working directory too, as by `python -m`.
            kwargs: passed on to the function at every call; JSON values.
            where, name, field: what an error names: the experiment's file and line, the objective, the place there.

        Raises:
            InputError: the module cannot be imported, or holds no function that can be called as a reward.
        """
        self.reference = reference
        self.name = name
        self._kwargs = dict(kwargs or {})
        with refused_at(where, field):
            module, self._function = import_function(reference, example="my_rewards:brevity")
            self._parameters = _parameters(self._function, reference)
            self._settings: dict[str, Callable[[Any], Any]] = getattr(self._function, "reward_settings", {})
            self._check_kwargs()
            self.identity = {
                "function": reference,
                **source_identity(self._function, module),
                "kwargs": without_secrets(self._kwargs | self._identified_settings()),  # it is written to disk
            }

    def __call__(self, batch: RewardBatch) -> list[float]:
        """Raw scores, (B,).

        Raises:
            InputError: the function raises, wants a field that the data lacks, or returns the wrong number of
                values or something that is no number. NumericError: it returns NaN or infinity.
        """
        if not len(batch):
            return []
        returned = self._call(batch)
        if hasattr(returned, "tolist"):  # NumPy arrays and tensors
            returned = returned.tolist()
        problem = None
        if not isinstance(returned, list | tuple):
            problem = f"{self.reference} returned {type(returned).__name__}, not a list"
        elif len(returned) != len(batch):
            problem = f"{self.reference} returned {len(returned)} scores, expected {len(batch)}"
        if problem:
            raise InputError(Problem(batch.where[0], self.name, problem, RETURNS))
        return check_scores(returned, batch, field=self.name, fix=f"let {self.reference} {RETURNS}")

    def release(self) -> None:
        """There is nothing to forget: what a function keeps is its own."""

    def _call(self, batch: RewardBatch) -> Any:
        try:
            return self._function(**self._arguments(batch))
        except ModpoError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if len(batch) > 1:  # row by row, to find the one that it fails on
                for i in range(len(batch)):
                    self._call(batch.rows(i, i + 1))
            problem = f"{self.reference} raised {described(error)} on {len(batch)} response(s)"
            fix = "handle this row in the function, or take it out of the data"
            raise InputError(Problem(batch.where[0], self.name, problem, fix)) from error

    def _arguments(self, batch: RewardBatch) -> dict[str, Any]:
        # Fresh lists: a function that edits its arguments must not edit the data.
        data = {**batch.fields, **batch.columns}
        offered: dict[str, Any] = {name: list(data[name]) for name in data if name not in self._settings}
        offered |= self._kwargs
        offered["prompts"] = [_copy(prompt) for prompt in batch.prompts]
        offered["completions"] = [_copy(response) for response in batch.responses]
        missing = [p.name for p in self._parameters.values() if _is_required(p) and p.name not in offered]
        if missing:
            problem, fix = f"{self.reference} needs this field", "add it to the data or to `kwargs`"
            raise InputError([Problem(batch.where[0], name, problem, fix) for name in missing])
        return {name: value for name, value in offered.items() if self._takes(name)}

    def _takes(self, name: str) -> bool:
        return name in self._parameters or any(p.kind is p.VAR_KEYWORD for p in self._parameters.values())

    def _check_kwargs(self) -> None:
        for name in self._kwargs:
            if name in ("prompts", "completions"):
                raise Refusal(f"`kwargs` sets {name!r}, which the batch provides", f"remove {name!r} from `kwargs`")
            if not self._takes(name):
                known = ", ".join(self._parameters)
                raise Refusal(f"{self.reference} takes no argument {name!r}", f"use one of: {known}")
        try:
            json.dumps(self._kwargs, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Refusal(f"`kwargs` cannot be written as JSON: {error}", "use numbers, text and lists") from error

    def _identified_settings(self) -> dict[str, Any]:
        identified = {}
        for name, identify in self._settings.items():
            value = self._kwargs.get(name, self._parameters[name].default)
            if value is inspect.Parameter.empty:
                raise Refusal(f"{self.reference} needs the argument {name!r}", "give it in `kwargs`")
            try:
                identified[name] = identify(value)
            except InputError as error:
                refused = error.problems[0]
                raise Refusal(refused.problem, refused.fix) from error
        return identified


def _parameters(function: Callable[..., Any], reference: str) -> dict[str, inspect.Parameter]:
    parameters = dict(signature_of(function, reference).parameters)
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters.values()):
        raise Refusal(f"{reference} has positional-only arguments", "arguments are passed by name: remove the `/`")
    if "completions" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise Refusal(f"{reference} takes no `completions`", "define it as f(prompts, completions, **kwargs)")
    return parameters


def _is_required(parameter: inspect.Parameter) -> bool:
    by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    return by_name and parameter.default is parameter.empty


def _copy(text: Text) -> Text:
    return text if isinstance(text, str) else [dict(message) for message in text]
