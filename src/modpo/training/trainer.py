"""`MODPOTrainer`: TRL's DPOTrainer with MODPO's loss, read from scored data by a packed forward.

PEFT, quantisation, distribution, logging and saving are TRL's and transformers'. Ours is the hot path, `compute_loss`.
What is touched of TRL's private surface stands in `modpo.training.trl_contract`.

In the logs, `rewards/*` estimate the reward of objective k and `weighted_rewards/*` the weighted sum of all; of a pair
that is trained on by regression both are the latter. `logps/chosen` may fall while training goes well: the loss rewards
the difference between chosen and rejected, and both may lose probability to answers that stand in no pair. Watch
`rewards/margins` and `rewards/accuracies`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DPOTrainer

from modpo.base.errors import NumericError
from modpo.base.processors import say_if_too_many_threads
from modpo.experiment.primary import REGRESSION
from modpo.experiment.sections import Objective
from modpo.forward.attention import packed_attention
from modpo.forward.logprobs import attach_packed_forward
from modpo.forward.low_rank import causal_lm, join_products, uncast_inputs
from modpo.forward.packability import choose_packing
from modpo.forward.packing_needs import Needs
from modpo.forward.readings import ResponseReadings, packed_readings, padded_readings
from modpo.scored.calibration import Calibration
from modpo.training.arguments import disable_functional_dropout, most_packed_tokens
from modpo.training.callbacks import NOT_FINITE_FIX, FiniteGradients
from modpo.training.collator import GroupCollator
from modpo.training.config import MODPOConfig
from modpo.training.kept_reference import KeptReference
from modpo.training.loading import done_already, named_tokenizer, policy_of, reference_of, use_pad_token
from modpo.training.logs import LOSS, MeanLogs
from modpo.training.loss import anchor_loss, modpo_loss, pair_logps, regression_loss, weighted_rewards
from modpo.training.metrics import margin_totals, response_totals, reward_totals, total
from modpo.training.model_card import PAPER
from modpo.training.model_checks import (
    require_checkpointable,
    require_readable_rows,
    require_trainable,
    without_router_loss,
)
from modpo.training.pair_logits import pair_logits
from modpo.training.row_inputs import RowInputs
from modpo.training.scored_rows import RowScorer, require_objectives, say_where_nothing_is_regressed
from modpo.training.signs_of_life import SignsOfLife
from modpo.training.splits import eval_splits, train_split
from modpo.training.start import ReferenceAtStart, adds_nothing
from modpo.training.trl_arguments import Model, given_or_default, require_arguments
from modpo.training.trl_settings import say_what_has_no_effect


class MODPOTrainer(RowInputs, ReferenceAtStart, SignsOfLife, MeanLogs, DPOTrainer):
    """Train one policy for one preference vector.

    The arguments are TRL's, in TRL's order. What is more, or other:

    Args:
        model: a causal language model, its name or folder, or a `PeftModel`.
        ref_model: the reference policy, or its name. Default: the model as it is given.
        args: `MODPOConfig`. Default: DPO on the pairs of chosen and rejected.
        data_collator: is refused; see `collator_class`.
        train_dataset, eval_dataset: preference rows as TRL knows them, which are tokenized and scored into
            `args.cache_dir`, or `ScoredData.dataset()`. In rows, chosen and rejected are the pairs of `args.objective`
            (default: the first objective) unless `objectives` says otherwise, and an objective that has neither pairs
            nor a reward there is read from the columns `chosen_<name>` and `rejected_<name>`. Streams are taken in.
            `eval_dataset` may be several, by name.
        processing_class: the tokenizer. Default: the model's.
        compute_metrics: gets what `pair_logits` returns, as in TRL.
        objectives: direction, scale, pairs and reward of each objective, by name. One without a weight counts 0.
        calibrations: what was fitted for those that are calibrated, `ScoredData.calibrations`.

    Raises:
        InputError: settings or rows that cannot be trained on, before training starts.
        NumericError: a loss or gradient that is not finite, at the step where it appears.
    """

    _tag_names = ["trl", "dpo", "modpo"]  # noqa: RUF012 (as in TRL)
    _name = "MODPO"
    _paper = PAPER
    collator_class: type[GroupCollator] = GroupCollator
    loss_is_scaled_for_ga = True  # the loss is divided by the pairs of the whole optimizer step

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        ref_model: str | PreTrainedModel | PeftModel | None = None,
        args: MODPOConfig | None = None,
        data_collator: None = None,
        train_dataset: Dataset | IterableDataset | list[dict[str, Any]] | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        quantization_config: Any = None,
        peft_config: PeftConfig | None = None,
        *,
        objectives: Mapping[str, Objective] | None = None,
        calibrations: Mapping[str, Calibration] | None = None,
    ) -> None:
        args = copy.copy(given_or_default(args, model))  # the next trainer may be given them with another model
        require_arguments(model, ref_model, data_collator, processing_class)
        objectives = dict(objectives or {})
        collator = self._new_collator(args, objectives, calibrations or {})
        require_objectives(objectives, collator)
        self._in_order = isinstance(train_dataset, IterableDataset)
        train_rows = train_split(train_dataset, args)
        eval_rows = None if eval_dataset is None else eval_splits(eval_dataset, args)

        policy, read_again = policy_of(model, args, quantization_config, peft_config)
        require_trainable(policy, peft_config)
        require_checkpointable(policy, peft_config, args)
        without_router_loss(policy, args)
        reference = (
            None if ref_model is None else reference_of(ref_model, model, args, quantization_config, peft_config)
        )
        tokenizer = processing_class or named_tokenizer(policy, args, by_name=isinstance(model, str))
        use_pad_token(tokenizer, args.pad_token)
        self._asked_packing, self._needs = args.packing, args.needs(peft_config)
        args.packing = collator.packing = self._packing_of(policy, reference)
        self._kept_reference = KeptReference(reference, peft_config, read_again)
        self._row_scorer = RowScorer(args, objectives, collator, tokenizer)
        score = partial(self._row_scorer.scored, nullcontext(policy if reference is None else reference))
        with args.main_process_first(local=False, desc="scoring"):  # the others find its columns in the cache
            train = score(train_rows, "train_dataset")
            held_out = None if eval_rows is None else score(eval_rows, "eval_dataset")
        require_readable_rows({"train_dataset": train, "eval_dataset": held_out}, policy, peft_config)
        with done_already(args, policy, peft_config, by_name=isinstance(model, str)):
            super().__init__(
                model=policy,
                args=args,
                data_collator=collator,
                train_dataset=train,
                eval_dataset=held_out,
                processing_class=tokenizer,
                compute_metrics=compute_metrics,
                callbacks=[FiniteGradients(), *(callbacks or [])],
                optimizers=optimizers,
                peft_config=peft_config,
            )
        self.ref_model = reference
        self._starts_at_reference = reference is None and adds_nothing(peft_config)
        self._take_over()
        say_where_nothing_is_regressed(args, train.column_names)

    def _take_over(self) -> None:
        """What TRL has made is made ready for packed rows, and what has no effect is said."""
        if isinstance(self.model, PeftModel) and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")  # TRL's copy of the reference would be saved beside the policy
        self._kept_reference.remember(self.model)
        self._prepare_model()
        say_if_too_many_threads(torch.get_num_threads())
        say_what_has_no_effect(self.args, packing=bool(self.args.packing))

    def _packing_of(self, policy: Model, reference: Model | None) -> bool:
        """Whether policy and reference are read packed: one way to read both."""
        packing = choose_packing(self._asked_packing, policy, self._needs)
        if packing and reference is not None:
            return choose_packing(self._asked_packing, reference, Needs(self._needs.longest))
        return packing

    def _new_collator(
        self, args: MODPOConfig, objectives: Mapping[str, Objective], calibrations: Mapping[str, Calibration]
    ) -> GroupCollator:
        return self.collator_class(
            weights=args.vector,
            signs={name: objective.sign for name, objective in objectives.items()},
            calibrations=calibrations,
            objective=args.objective,
            regression_below=args.smallest_primary_weight(),
            # Gradients and metrics meet after every pass: with unequal numbers of them, processes would wait.
            max_packed_tokens=(
                sys.maxsize if args.world_size > 1 else most_packed_tokens(args.max_packed_tokens, args.device.type)
            ),
        )

    def _prepare_model(self) -> None:
        """Make the model that TRL has prepared one of which log-probs are read our way."""
        self._causal_lm = causal_lm(self.model)
        join_products(self)
        if self.args.disable_dropout:
            disable_functional_dropout(self._causal_lm)
        if self.args.packing and isinstance(self.model, PeftModel):  # its adapters may stand in the way
            self.args.packing = choose_packing(self._asked_packing, self.model, self._needs)
            self.data_collator.packing = self.args.packing
        if self.args.packing:
            attach_packed_forward(self._causal_lm)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The batches of one optimizer step and how many pairs they hold, over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [self.at_weights(batch) for batch in batches]
        pairs = torch.tensor(sum(len(part["pairs"]) for batch in batches for part in batch["parts"]), device=device)
        return batches, self.accelerator.gather(pairs).sum()

    def at_weights(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch as the collator made it -> a batch of parts. Here they are the same: there is one vector."""
        return batch

    def steer(self, weights: Tensor) -> None:
        """Make the policy that of a part's preference vector, (K,), before it is read. Here it is that already."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The batch's loss, (): forward and backward of each part; losses and gradients add up to the batch's."""
        with self._hot_path():  # spans the backward too, where checkpointed layers run again
            losses = []
            for part in inputs["parts"]:
                self.steer(part["weights"])
                losses.append(super().training_step(model, part, *args, **kwargs))
        return torch.stack(losses).sum()

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The batch's loss, (), and for `compute_metrics` what TRL gives it, see `pair_logits`."""
        parts = self.at_weights(inputs)["parts"]
        pairs = sum(len(part["pairs"]) for part in parts)
        losses = []
        with self._hot_path(), torch.no_grad(), self.compute_loss_context_manager():
            for part in parts:
                self.steer(part["weights"])
                losses.append(self.compute_loss(model, self._prepare_inputs(part), num_items_in_batch=pairs))
        loss = torch.stack(losses).sum() / self.accelerator.num_processes
        if prediction_loss_only:
            return loss, None, None
        with torch.no_grad(), self.compute_loss_context_manager():
            logits, tokens = pair_logits(model, parts, self.processing_class.pad_token_id)
        inputs["input_ids"] = tokens  # where transformers looks for what `include_for_metrics` asks for
        return loss, logits, tokens

    @contextmanager
    def _hot_path(self) -> Iterator[None]:
        """Within it the model reads packed rows, and adapters' inputs are not cast."""
        with uncast_inputs(self), packed_attention(self._causal_lm) if self.args.packing else nullcontext():
            yield

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """MODPO's loss of one part, (): the mean over its B pairs, or their sum over `num_items_in_batch` pairs.

        Args:
            inputs: a part as `GroupCollator.part` returns it.
            return_outputs: whether to return the log-probs of its M responses too, `logps` (M,).
        """
        readings = self._read(model, inputs)
        logps = readings.logps  # (M,)
        self.require_reference_at_start(logps, inputs["ref_logps"], lambda: self._read(model, inputs).logps)
        losses, *rewards = self._pair_losses(logps, inputs)
        if self.args.anchor:
            four = pair_logps(logps, inputs["ref_logps"], inputs["pairs"])
            losses = losses + self.args.anchor * anchor_loss(*four, beta=self.beta)
        if bad := int((~losses.detach().isfinite()).sum()):
            problem = f"the loss of {bad} of {len(losses)} pairs is not finite"
            raise NumericError(f"step {self.state.global_step}: {problem}; fix: {NOT_FINITE_FIX}")
        with torch.no_grad():
            self._record(readings, losses, rewards, inputs)
        if num_items_in_batch is None:
            loss = losses.mean()
        else:  # gradients are averaged over processes, so each process counts its share of all pairs that often
            loss = losses.sum() * self.accelerator.num_processes / num_items_in_batch
        return (loss, {"logps": logps}) if return_outputs else loss

    def _read(self, model: nn.Module, inputs: dict[str, Any]) -> ResponseReadings:
        """What the model says of a part's M responses."""
        if self.args.packing:
            return packed_readings(model, inputs["packed_row"].to(self.accelerator.device))
        multiple = self.args.pad_to_multiple_of
        return padded_readings(model, inputs["prompts_ids"], inputs["responses_ids"], pad_to_multiple_of=multiple)

    def _pair_losses(self, logps: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and implicit rewards of each pair, (B,) each: MODPO's with its primary objective, or regression."""
        weights = inputs["weights"].tolist()
        found = [logps.new_zeros(len(inputs["pairs"])) for _ in range(3)]
        for k in inputs["primaries"].unique().tolist():
            mine = inputs["primaries"] == k
            pairs = inputs["pairs"][mine]
            four = pair_logps(logps, inputs["ref_logps"], pairs)
            chosen, rejected = (inputs["margins"][side] for side in pairs.unbind(1))  # (B_k, K)
            if k == REGRESSION:
                computed = regression_loss(*four, chosen, rejected, weights=weights, beta=self.beta)
            else:
                others = [i for i in range(len(weights)) if i != k]
                margins, w = (chosen[:, others], rejected[:, others]), [weights[i] for i in (k, *others)]
                computed = modpo_loss(*four, *margins, weights=w, beta=self.beta, loss_type=self.loss_types[0])
                if self.args.scale_loss_by_weight:
                    computed = (computed[0] * weights[k], *computed[1:])
            found = [total.masked_scatter(mine, part) for total, part in zip(found, computed, strict=True)]
        return found[0], found[1], found[2]

    def _record(
        self, readings: ResponseReadings, losses: Tensor, rewards: list[Tensor], inputs: dict[str, Any]
    ) -> None:
        """Add a part's metrics to the log.

        Args:
            readings: of its M responses. losses: of its pairs, (B,). rewards: of each pair's chosen, and of its
            rejected response, (B,) each.
        """
        counted = self.counted(inputs["pair_counts"])
        pairs, primaries = inputs["pairs"][counted], inputs["primaries"][counted]
        weighted = weighted_rewards(readings.logps, inputs["ref_logps"], beta=self.beta)[pairs]  # (B, 2)
        found = {
            **reward_totals("rewards", *(side[counted] for side in rewards)),
            **reward_totals("weighted_rewards", *weighted.unbind(1)),
            **response_totals(readings, pairs),
            **margin_totals(list(self.args.vector), inputs["margins"], pairs, primaries),
        }
        if not self.model.training:
            found[LOSS] = total(losses[counted])
        self.add_up(found, num_tokens=inputs["num_tokens"], read=inputs["tokens"])
