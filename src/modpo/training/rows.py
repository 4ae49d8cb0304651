"""The rows that a trainer trains on: scored, of known calibration, and with something to learn at its vector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modpo.base.errors import InputError, Problem
from modpo.data.prompt_group import UNNAMED
from modpo.experiment.sections import Objective
from modpo.scored.data import PAIRS_PREFIX, REWARD_PREFIX
from modpo.scored.scorer import score_dataset
from modpo.training.collator import GroupCollator

if TYPE_CHECKING:
    from modpo.training.config import MODPOConfig


def require_calibrations(objectives: Mapping[str, Objective], collator: GroupCollator) -> None:
    """Check that each objective that asks for a calibration has one.

    Raises:
        InputError: one has none.
    """
    missing = [n for n, o in objectives.items() if o.calibration != "none" and n not in collator.calibrations]
    if missing:
        fix = "pass `calibrations=scored.calibrations`, or use `calibration: none`"
        raise InputError(Problem("MODPOTrainer", f"objectives.{missing[0]}.calibration", "was not fitted", fix))


def trainable_rows(rows: Dataset, collator: GroupCollator, name: str) -> Dataset:
    """The rows that hold something to train on at this preference vector.

    Raises:
        InputError: none does.
    """
    needed = [c for c in rows.column_names if c.startswith((PAIRS_PREFIX, REWARD_PREFIX)) or c == "ref_logps"]
    kept = [
        i for i, row in enumerate(rows.select_columns(needed)) if any(choice.pairs for choice in collator.choices(row))
    ]
    if not kept:
        active = ", ".join(n for n, weight in collator.weights.items() if weight > 0)
        problem = f"nothing to train on at this preference vector, in {len(rows)} prompts"
        fix = f"of {active}, one needs pairs and the others a reward, or all a reward and prompts two responses"
        raise InputError(Problem(name, "pairs", problem, fix))
    return rows if len(kept) == len(rows) else rows.select(kept)


def scored_rows(
    rows: Dataset,
    args: MODPOConfig,
    objectives: Mapping[str, Objective],
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Dataset:
    """Scored data as it is; preference rows are scored first.

    Raises:
        InputError: scored data without pairs and rewards of an objective that has a weight.
    """
    if "ref_logps" in rows.column_names:
        known = {c.partition("/")[2] for c in rows.column_names if c.startswith((PAIRS_PREFIX, REWARD_PREFIX))}
        missing = [name for name, weight in args.vector.items() if weight > 0 and name not in known]
        if missing:
            problem = f"holds neither pairs nor rewards of {', '.join(missing)}"
            fix = f"score the data with objectives {', '.join(missing)}"
            raise InputError(Problem("train_dataset", REWARD_PREFIX + missing[0], problem, fix))
        return rows
    labelled = {n: o.pairs for n, o in objectives.items() if o.pairs is not None and n in args.vector}
    return score_dataset(
        rows,
        model=model,
        tokenizer=tokenizer,
        objectives={name: objectives.get(name, Objective(name)) for name in args.vector},
        label_sets=labelled or {args.objective or next(iter(args.vector)): UNNAMED},
        cache_dir=Path(args.cache_dir) if args.cache_dir else None,
        max_length=args.max_length or 1 << 30,
        max_prompt_length=args.max_prompt_length,
        packing=args.packing,
    )
