"""From what a trainer is given to rows it can train on: scored where they are not, and with something to learn."""

from __future__ import annotations

from collections.abc import Container, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from modpo.base.errors import InputError, Problem
from modpo.base.progress import say, say_once
from modpo.data.clock import TODAY, Clock
from modpo.data.prompt_group import UNNAMED
from modpo.data.tokens import NO_LIMIT
from modpo.experiment.primary import active_objectives
from modpo.experiment.sections import Objective
from modpo.forward.frozen import reference_logps
from modpo.forward.low_rank import causal_lm
from modpo.scored.data import PAIRS_PREFIX, REWARD_PREFIX
from modpo.scored.of_rows import score_dataset
from modpo.training.collator import GroupCollator
from modpo.training.config import MODPOConfig
from modpo.training.kept_reference import OTHER_FIX, apart, rounding
from modpo.training.splits import Split, Splits, over_splits
from modpo.training.trl_arguments import WHERE, ArgumentValueError, Model

TOKENS = ("prompt_ids", "responses_ids")
DECIDING = ("ref_logps", "first_equal")  # fields that, beside pairs and rewards, decide what is trained on
ROWS_AT_ONCE = 10_000
AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # by `mixed_precision`


@dataclass(frozen=True)
class RowScorer:
    """Makes rows of what a trainer is given.

    Args:
        collator: decides which rows hold something to train on.
    """

    args: MODPOConfig
    objectives: Mapping[str, Objective]
    collator: GroupCollator
    tokenizer: PreTrainedTokenizerBase

    def scored(
        self, reference: AbstractContextManager[Model], splits: Splits, name: str, before: Dataset | None = None
    ) -> Any:
        """Rows to train or evaluate on: a Dataset, or one of each of several data sets, by name.

        Args:
            reference: holds the reference policy within it; entered where rows are not scored.
            name: what messages call the rows.
            before: rows that were scored before, whose log-probs the reference has to give again.

        Raises:
            InputError: nothing to train on, or rows that are not scored and a reference that is not kept.
        """
        if all(is_scored(part) for part in (splits.values() if isinstance(splits, dict) else [splits])):
            return over_splits(splits, partial(self._trainable, scorer=None), name)
        with reference as scorer:
            if before is not None:
                self._require_same(scorer, before)
            return over_splits(splits, partial(self._trainable, scorer=scorer), name)

    def columns(self) -> list[str]:
        """The columns of scored data that are read."""
        weights = self.args.vector
        return [*TOKENS, *DECIDING, *(prefix + name for name in weights for prefix in (PAIRS_PREFIX, REWARD_PREFIX))]

    def _trainable(self, rows: Split, name: str, scorer: Model | None) -> Dataset:
        if isinstance(rows, Dataset) and is_scored(rows):
            scored = require_scores(rows, self.args, name)
        else:
            assert scorer is not None
            scored = score_rows(rows, name, self.args, self.objectives, scorer, self.tokenizer)
        return trainable_rows(scored, self.collator, name)

    def _require_same(self, scorer: Model, before: Dataset) -> None:
        """Refuse a reference that does not give the log-probs that were given before."""
        row, precision = before[0], self.args.mixed_precision
        texts = [row["prompt_ids"]], [row["responses_ids"]]
        found = reference_logps(scorer, *texts, packing=self.args.packs, autocast=AUTOCAST[precision])
        off = apart(torch.tensor(found), torch.tensor(row["ref_logps"]))
        if off > rounding(causal_lm(scorer), precision):
            problem = f"the reference that can be had now is another one: its log-probs are {off:.1%} apart"
            raise ArgumentValueError(Problem(WHERE, "eval_dataset", problem, OTHER_FIX))


def require_objectives(objectives: Mapping[str, Objective], collator: GroupCollator) -> None:
    """Check that objectives are those of the vector, and that each has a calibration if it asks for one.

    Raises:
        InputError: the vector has other ones, or a calibration was not fitted.
    """
    if objectives and collator.weights.keys().isdisjoint(objectives):
        problem = f"none of {', '.join(objectives)} has a weight: those with one are {', '.join(collator.weights)}"
        raise InputError(Problem(WHERE, "objectives", problem, "give objectives their weights in `args.weights`"))
    if missing := [n for n, o in objectives.items() if o.calibration != "none" and n not in collator.calibrations]:
        fix = "pass `calibrations=scored.calibrations`, or use `calibration: none`"
        raise InputError(Problem(WHERE, f"objectives.{missing[0]}.calibration", "was not fitted", fix))


def say_where_nothing_is_regressed(args: MODPOConfig, columns: Container[str]) -> None:
    """Tell of a `regression_below` that a weight is below, where an objective without a reward leaves no regression.

    Args:
        columns: of the scored data.
    """
    active = active_objectives(args.vector)
    below = [name for name in active if args.vector[name] < (args.regression_below or 0)]
    lacking = [name for name in active if REWARD_PREFIX + name not in columns]
    if any(PAIRS_PREFIX + name in columns for name in below) and lacking:
        problem = f"there is no reward of {', '.join(lacking)} to regress on"
        say_once(f"warning: regression_below={args.regression_below} has no effect: {problem}; fix: give it a reward")


def trainable_rows(rows: Dataset, collator: GroupCollator, name: str) -> Dataset:
    """The rows that hold something to train on at this preference vector.

    Raises:
        InputError: none does.
    """
    read = rows.select_columns([column for column in rows.column_names if _decides(column)]).with_format("arrow")
    trained = [collator.trained(batch) for batch in read.iter(ROWS_AT_ONCE)]
    kept = np.flatnonzero(np.concatenate(trained)) if trained else np.zeros(0, dtype=np.int64)
    if not len(kept):
        active = ", ".join(n for n, weight in collator.weights.items() if weight > 0)
        problem = f"nothing to train on at this preference vector, in {len(rows)} prompts"
        fix = f"of {active}, one needs pairs and the others a reward, or all a reward and prompts two responses"
        raise InputError(Problem(name, "pairs", problem, fix))
    return rows if len(kept) == len(rows) else rows.select(kept)


def _decides(column: str) -> bool:
    return column.startswith((PAIRS_PREFIX, REWARD_PREFIX)) or column in DECIDING


def is_scored(rows: Split) -> bool:
    """Whether rows hold reference log-probs."""
    return isinstance(rows, Dataset) and "ref_logps" in rows.column_names


def require_scores(rows: Dataset, args: MODPOConfig, name: str) -> Dataset:
    """Scored data as it is.

    Raises:
        InputError: it holds neither pairs nor rewards of an objective that has a weight.
    """
    known = {c.partition("/")[2] for c in rows.column_names if c.startswith((PAIRS_PREFIX, REWARD_PREFIX))}
    if missing := [name for name, weight in args.vector.items() if weight > 0 and name not in known]:
        problem = f"holds neither pairs nor rewards of {', '.join(missing)}"
        fix = f"score the data with objectives {', '.join(missing)}, or give the weights to {', '.join(sorted(known))}"
        raise InputError(Problem(name, REWARD_PREFIX + missing[0], problem, fix))
    return rows


def score_rows(
    rows: Split,
    name: str,
    args: MODPOConfig,
    objectives: Mapping[str, Objective],
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
) -> Dataset:
    """Preference rows, tokenized and scored by the reference policy, `model`, in the number format of training.

    Without `max_prompt_length` they are cut as in TRL: the end is, and a prompt that fills `max_length` is left out.
    """
    labelled = {n: o.pairs for n, o in objectives.items() if o.pairs is not None and n in args.vector}
    longest, longest_prompt = args.max_length or NO_LIMIT, args.max_prompt_length
    scored = score_dataset(
        rows,
        name=name,
        model=model,
        tokenizer=tokenizer,
        objectives={name: objectives.get(name, Objective(name)) for name in args.vector},
        label_sets=labelled or {args.objective or next(iter(args.vector)): UNNAMED},
        cache_dir=Path(args.cache_dir) if args.cache_dir else None,
        max_length=longest,
        max_prompt_length=longest - 1 if longest_prompt is None else longest_prompt,
        packing=args.packing,
        autocast=AUTOCAST[args.mixed_precision],
        skip_empty=args.skip_empty,
        template_kwargs=args.template_kwargs,
        clock=Clock(Path(args.output_dir), writes=True) if args.output_dir else TODAY,
    )
    return scored if longest_prompt is not None else without_filled(scored, name, longest)


def without_filled(scored: Dataset, name: str, max_length: int) -> Dataset:
    """The rows whose prompt leaves room for a response, where a prompt has lost its beginning only for want of any.

    Raises:
        InputError: none is left.
    """
    kept = np.flatnonzero(~scored.with_format("numpy")["prompt_truncated"][:])
    if not len(kept):
        problem, fix = f"every prompt has {max_length} tokens or more", "raise max_length, or set max_prompt_length"
        raise InputError(Problem(name, "max_length", problem, fix))
    if filled := len(scored) - len(kept):
        say(
            f"warning: {name}: {filled} prompts that fill `max_length` {max_length} are left out, as in TRL; "
            "fix: raise max_length, or set max_prompt_length, which cuts their beginning"
        )
    return scored.select(kept) if filled else scored
