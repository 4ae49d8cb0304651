"""Preference rows in memory into scored data: what `MODPOTrainer` does with the rows that it is given."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.progress import say
from modpo.data.clock import TODAY, Clock
from modpo.data.groups import group_rows
from modpo.data.rows import rows_from_dataset, rows_from_list
from modpo.experiment.sections import (
    AUTO,
    DRAWN,
    ModelSection,
    Objective,
    RewardSection,
)
from modpo.models.folders import default_cache_dir
from modpo.models.reference import LoadedModel
from modpo.rewards.batch import RewardContext
from modpo.rewards.loading import load_reward
from modpo.scored.columns import Row
from modpo.scored.scorer import Scorer

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def score_dataset(
    rows: Dataset | list[Row],
    *,
    name: str = "data set",
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    objectives: Mapping[str, Objective],
    label_sets: Mapping[str, str],
    max_length: int,
    cache_dir: Path | None = None,
    max_prompt_length: int | None = None,
    packing: bool | str = AUTO,
    skip_empty: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
    clock: Clock = TODAY,
    autocast: torch.dtype | None = None,
) -> Dataset:
    """Preference rows in memory -> scored data, with `model` as the reference policy.

    An objective without a reward and without pairs is a column of the rows: `chosen_<name>`, `rejected_<name>`.

    Args:
        name: what messages call the rows.
        template_kwargs: variables of the chat template for all rows. clock: the date that the template sees.
        autocast: the number format of mixed precision in which the model is read; None: its own.
    """
    sections = {
        name: objective.reward or RewardSection(column=name)
        for name, objective in objectives.items()
        if objective.reward or name not in label_sets
    }
    columns = [section.column for section in sections.values() if section.column and section.missing == "error"]
    section = ModelSection(str(model.config._name_or_path))
    context = RewardContext(
        section, cache_dir or default_cache_dir(), max_length, max_prompt_length, packing, clock=clock
    )
    scorer = Scorer(
        reference=LoadedModel(model, tokenizer, clock, autocast),
        rewards={n: load_reward(s, context, where="objectives", name=n) for n, s in sections.items()},
        context=context,
        label_sets={name: label_set for name, label_set in label_sets.items() if label_set != DRAWN},
        objectives={name: objective for name, objective in objectives.items() if objective.calibration == "none"},
    )
    _say_what_is_not_read(rows, name, objectives.keys() - sections.keys())
    read = rows_from_list(rows, name) if isinstance(rows, list) else rows_from_dataset(rows, name)
    groups = group_rows(
        read,
        columns=columns,
        skip_empty=skip_empty,
        template_kwargs=template_kwargs,
        cache_dir=context.cache_dir,
        keep=True,
    )
    for warning in groups.warnings:
        say(f"warning: {warning}")
    return scorer.score(groups).dataset()


def _say_what_is_not_read(rows: Dataset | list[Row], name: str, only_pairs: Set[str]) -> None:
    """Tell of columns that look like rewards of objectives that are known by their pairs alone."""
    columns = set(rows[0] if isinstance(rows, list) and rows else getattr(rows, "column_names", ()))
    for objective in sorted(only_pairs):
        if found := sorted({f"chosen_{objective}", f"rejected_{objective}"} & columns):
            say(
                f"warning: {name}: {' and '.join(found)} not read: {objective} is known by its pairs; fix: if it is to "
                f"be known by these rewards too, give it the reward RewardSection(column={objective!r})"
            )
