"""A trainer's log: means over pairs of everything that was measured since the last entry, and counts of tokens.

TRL keeps the mean of each batch and logs the mean of these, so that a pair of a smaller batch counts for more. Here
totals and counts are kept, and divided when they are logged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput

from modpo.training.metrics import Totals, tokens_read
from modpo.training.resumable import Resumable

LOSS = "loss"  # the held-out one; that of training is logged by transformers


class MeanLogs(Resumable):
    """A mixin for trainers on TRL's base, to stand before the trainer in the order of bases.

    Attributes:
        tokens_read: what was read to be trained on, a prompt once for all its responses where rows are packed.
            `num_tokens` in the log counts as TRL does: prompt and chosen, prompt and rejected, of each pair.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sums: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}  # by mode and name: total, count
        super().__init__(*args, **kwargs)

    def add_up(self, found: Totals, *, num_tokens: int, read: int) -> None:
        """Take the totals of a part, and the tokens it counts and reads, over all processes: they call it together."""
        rows = [torch.stack(pair) for pair in found.values()]
        rows.append(torch.tensor([num_tokens, read], device=self.accelerator.device))
        *sums, (num_tokens, read) = self.accelerator.gather(torch.stack(rows)[None]).sum(0).tolist()
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self._total_train_tokens += int(num_tokens)
            self.tokens_read += int(read)
        for name, (total, count) in zip(found, sums, strict=True):
            before = self._sums[mode].get(name, [0.0, 0.0])
            self._sums[mode][name] = [before[0] + total, before[1] + count]

    def counted(self, pair_counts: Tensor) -> Tensor:
        """Which pairs of a part count, (B,) bool, from how many each of its prompts has, (G,).

        Where several processes evaluate, the last batch is filled up with prompts that were read before.
        """
        mine = torch.arange(len(pair_counts), device=self.accelerator.device)
        mine += self.accelerator.process_index * len(pair_counts)
        kept = mine if self.model.training else self.accelerator.gather_for_metrics(mine)
        return torch.isin(mine, kept).repeat_interleave(pair_counts.to(mine.device))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's, of means over all pairs since the last entry."""
        mode = "train" if self.model.training else "eval"
        if sums := self._sums[mode]:
            means = {name: [total / count] for name, (total, count) in sums.items() if count}
            self._metrics[mode].update(means)  # TRL logs the mean of each list, here of one
            self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
            if mode == "train":
                self._metrics[mode]["tokens_read"] = [self.tokens_read]
            sums.clear()
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As transformers', with a loss that is the mean over pairs, not of batches weighted by their prompts."""
        self._sums["eval"].clear()  # `predict` logs nothing
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, count = self._sums["eval"].pop(LOSS, (0.0, 0.0))
        if count:
            output.metrics[f"{metric_key_prefix}_loss"] = total / count
        return output

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Of a batch of parts, by the tokens that the model reads of it."""
        read = torch.empty(tokens_read(inputs["parts"], padding=True), device="meta")
        operations: int = super().floating_point_ops({self._main_input: read})
        return operations

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        counted = self.args.include_num_input_tokens_seen
        if counted == "no":
            return
        tokens = torch.tensor(tokens_read(inputs["parts"], padding=counted == "all"), device=self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.gather(tokens).sum())

    @property
    def _main_input(self) -> str:
        name: str = getattr(self.model, "main_input_name", "input_ids")
        return name

    def unlogged(self) -> dict[str, Any]:
        return {"sums": self._sums["train"], "num_tokens": self._total_train_tokens}

    def continue_log(self, unlogged: dict[str, Any]) -> None:
        self._sums["train"], self._total_train_tokens = unlogged["sums"], unlogged["num_tokens"]
