"""A trainer's data sets: what it evaluates later than it was made, the order of rows, and what is kept of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import PredictionOutput

from modpo.scored.lists import longest_with_response
from modpo.training.kept_reference import KeptReference
from modpo.training.scored_rows import ROWS_AT_ONCE, TOKENS, RowScorer
from modpo.training.splits import eval_splits

BY_LENGTH = ("group_by_length", "batch_rebalance")  # kinds of `train_sampling_strategy`


class RowInputs(Trainer):
    """A mixin for trainers on scored rows, to stand before TRL's trainer in the order of bases.

    What TRL makes of rows before it trains is made of them already, see `RowScorer`.
    """

    _row_scorer: RowScorer
    _kept_reference: KeptReference
    _in_order = False  # rows keep their order

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As TRL's: `eval_dataset` may be whatever the trainer takes as one, or its name.

        Raises:
            ArgumentValueError: rows that are not scored, and the reference to score them is not kept.
        """
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._scored_later(eval_dataset, "eval_dataset")
        # TRL's own would tokenize the rows, and ask for a reference of its own.
        return Trainer.evaluate(self, eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """As transformers', of rows or scored data; the predictions are those of `pair_logits`."""
        rows = self._scored_later(test_dataset, "test_dataset")
        return super().predict(rows, ignore_keys, metric_key_prefix)

    def _scored_later(self, rows: Any, name: str) -> Any:
        reference = self._kept_reference.at(self.model, moved=self.state.global_step > 0)
        splits = eval_splits(rows, self.args, name)
        with self.args.main_process_first(local=False, desc="scoring"):  # the others find its columns in the cache
            return self._row_scorer.scored(reference, splits, name, self.train_dataset)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # scored data is tokenized

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # scored data holds them

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = self._row_scorer.columns()  # what `remove_unused_columns` leaves

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        rows = train_dataset or self.train_dataset
        if self._in_order:
            return SequentialSampler(rows)
        sampler: Sampler[int] | None = super()._get_train_sampler(self._with_lengths(rows))
        return sampler

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler[int] | None:
        sampler: Sampler[int] | None = super()._get_eval_sampler(self._with_lengths(eval_dataset))
        return sampler

    def _with_lengths(self, rows: Dataset) -> Dataset:
        """Rows with the tokens of each prompt with its longest response, where they are sorted by them."""
        if self.args.train_sampling_strategy not in BY_LENGTH:
            return rows
        read = rows.select_columns(TOKENS).with_format("arrow").iter(ROWS_AT_ONCE)
        lengths = [longest_with_response(*(batch.column(name) for name in TOKENS)) for batch in read]
        return rows.add_column(self.args.length_column_name, np.concatenate(lengths))
