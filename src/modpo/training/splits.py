"""The data sets that a trainer is given: one or several, held or streamed.

A stream is taken in: each response is read by the reference once, and looked up whenever it is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from datasets import Dataset, IterableDataset

from modpo.base.errors import Problem
from modpo.base.progress import say
from modpo.training.config import MODPOConfig
from modpo.training.trl_arguments import WHERE, ArgumentTypeError, ArgumentValueError

Split: TypeAlias = Dataset | list[dict[str, Any]]
Splits: TypeAlias = Split | dict[str, Split]
Result = TypeVar("Result")


def train_split(rows: Any, args: MODPOConfig) -> Split:
    """The rows to train on. Of a stream as many as `max_steps` reads prompts; rows may share some.

    Raises:
        ArgumentValueError: there are none, or a stream without `max_steps`.
        ArgumentTypeError: they are no data set.
    """
    if rows is None:
        fix = "give a `Dataset` or `IterableDataset` of preference rows, or scored data"
        raise ArgumentValueError(Problem(WHERE, "train_dataset", "`train_dataset` is required", fix))
    if not isinstance(rows, IterableDataset):
        return _held(rows, "train_dataset")
    _require_streamable(args, "train_dataset")
    if args.max_steps <= 0:
        fix = "set max_steps, or take the rows in yourself: Dataset.from_list(list(rows))"
        raise ArgumentValueError(Problem(WHERE, "train_dataset", "is a stream, whose end is not known", fix))
    most = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return _taken_in(rows, "train_dataset", most)


def eval_splits(rows: Any, args: MODPOConfig, name: str = "eval_dataset") -> Splits:
    """The rows to evaluate on; several data sets stay apart, by name. Streams are taken in whole.

    Raises:
        ArgumentTypeError: they are no data set.
    """
    if isinstance(rows, Mapping):
        return {split: _eval_split(part, args, f"{name}[{split!r}]") for split, part in rows.items()}
    return _eval_split(rows, args, name)


def over_splits(splits: Splits, function: Callable[[Split, str], Result], name: str) -> Result | dict[str, Result]:
    """A function of rows and their name, of the data set or of each of several."""
    if isinstance(splits, dict):
        return {split: function(part, f"{name}[{split!r}]") for split, part in splits.items()}
    return function(splits, name)


def _eval_split(rows: Any, args: MODPOConfig, name: str) -> Split:
    if not isinstance(rows, IterableDataset):
        return _held(rows, name)
    _require_streamable(args, name)
    return _taken_in(rows, name)


def _held(rows: Any, name: str) -> Split:
    if isinstance(rows, Dataset) or (isinstance(rows, list) and rows and isinstance(rows[0], dict)):
        return rows
    problem = f"`{name}` must be a `Dataset` or `IterableDataset`, or a list of dicts, not {type(rows).__name__}"
    raise ArgumentTypeError(Problem(WHERE, name, problem, "give one split: rows of prompt, chosen and rejected"))


def _require_streamable(args: MODPOConfig, name: str) -> None:
    """Refuse what TRL refuses: who asks for log-probs by a row's place asks for rows that have one."""
    if args.precompute_ref_log_probs:
        problem = "`precompute_ref_log_probs=True` is not supported with IterableDataset"
        fix = "leave it out: the rows of a stream are taken in, and their reference log-probs computed once, without it"
        raise ArgumentValueError(Problem(WHERE, name, problem, fix))


def _taken_in(stream: IterableDataset, name: str, most: int | None = None) -> list[dict[str, Any]]:
    rows = list(islice(stream.with_format(None), most))
    if not rows:
        raise ArgumentValueError(Problem(WHERE, name, "the stream holds no rows", "give at least one row"))
    read = f"its first {len(rows)} rows, for max_steps" if len(rows) == most else f"all its {len(rows)} rows"
    say(f"{name}: a stream, of which {read}, are taken in and scored once")
    return rows
