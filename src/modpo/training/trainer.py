"""`MODPOTrainer`: TRL's DPOTrainer with MODPO's loss, read from scored data by a packed forward.

Model loading, PEFT, quantisation, distribution, logging and saving are TRL's and transformers'. Ours is the hot path,
`compute_loss`. The data is tokenized and scored already, so TRL's preparation of it is passed by. What is touched of
TRL's private surface stands in `modpo.training.trl_contract`.

In the logs, `logps/chosen` may fall while training goes well: the loss rewards the difference between chosen and
rejected, and both may lose probability to answers that stand in no pair. Watch `rewards/margins` and
`rewards/accuracies`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import DPOTrainer

from modpo.base.errors import InputError, NumericError, Problem
from modpo.experiment.primary import REGRESSION
from modpo.experiment.sections import Objective
from modpo.forward.attention import packed_attention
from modpo.forward.logprobs import attach_packed_forward, require_packable
from modpo.forward.low_rank import causal_lm, join_adapters, uncast_inputs
from modpo.forward.readings import ResponseReadings, packed_readings, padded_readings
from modpo.models.quantized import keep_trainable_layout
from modpo.scored.calibration import Calibration
from modpo.training.arguments import disable_functional_dropout, most_packed_tokens
from modpo.training.callbacks import NOT_FINITE_FIX, FiniteGradients
from modpo.training.collator import GroupCollator, require_calibrations, scored_rows, trainable_rows
from modpo.training.config import MODPOConfig
from modpo.training.logs import LOSS, MeanLogs
from modpo.training.loss import anchor_loss, modpo_loss, pair_logps, regression_loss, weighted_rewards
from modpo.training.metrics import margin_totals, response_totals, reward_totals, total
from modpo.training.model_card import PAPER
from modpo.training.model_checks import require_readable_rows, require_trainable, without_router_loss
from modpo.training.pair_logits import pair_logits

# At step 0 policy and reference are the same model; what they may differ by is rounding, relative to the log-prob.
STEP_0_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
STEP_0_TOLERANCE_16_BIT = 0.05


class MODPOTrainer(MeanLogs, DPOTrainer):
    """Train one policy for one preference vector.

    Args:
        model: a causal language model, its name or folder, or a `PeftModel`. The reference policy is this model as it
            is given.
        args: `MODPOConfig`.
        train_dataset, eval_dataset: `ScoredData.dataset()`, or preference rows as TRL knows them, which are then
            tokenized and scored into `args.cache_dir`. In rows, chosen and rejected are the pairs of `args.objective`
            (default: the first objective) unless `objectives` says otherwise, and an objective that has neither pairs
            nor a reward there is read from the columns `chosen_<name>` and `rejected_<name>`.
        processing_class: the tokenizer. Default: the model's.
        objectives: direction, scale, pairs and reward of each objective, by name.
        calibrations: what was fitted for those that are calibrated, `ScoredData.calibrations`.
        peft_config: adapters to add, e.g. `peft.LoraConfig`.

    The other arguments are those of `transformers.Trainer`.

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
        args: MODPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        objectives: Mapping[str, Objective] | None = None,
        calibrations: Mapping[str, Calibration] | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(model, str):
            safe = {"use_safetensors": True, "trust_remote_code": False}
            model = AutoModelForCausalLM.from_pretrained(model, **(safe | (args.model_init_kwargs or {})))
        if not hasattr(model, "hf_device_map"):
            model.to(args.device)  # scoring comes before the trainer would move it
        require_trainable(model, peft_config)
        keep_trainable_layout(model)
        without_router_loss(model, args)
        processing_class = processing_class or AutoTokenizer.from_pretrained(model.config._name_or_path)
        if args.packing:
            require_packable(causal_lm(model))
        objectives = dict(objectives or {})
        with args.main_process_first(local=False, desc="scoring"):  # the others find its columns in the cache
            scored = {
                name: scored_rows(rows, args, objectives, model, processing_class)
                for name, rows in (("train", train_dataset), ("eval", eval_dataset))
                if rows is not None
            }
        require_readable_rows(scored, model)
        collator = self._new_collator(args, objectives, calibrations or {})
        require_calibrations(objectives, collator)
        started_as_peft = isinstance(model, PeftModel)
        # Without PEFT, TRL would load a second model to be the reference; ours is in the data already.
        args.precompute_ref_log_probs = not started_as_peft and peft_config is None
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=trainable_rows(scored["train"], collator, "train_dataset"),
            eval_dataset=trainable_rows(scored["eval"], collator, "eval_dataset") if "eval" in scored else None,
            processing_class=processing_class,
            peft_config=peft_config,
            callbacks=[FiniteGradients(), *(callbacks or [])],
            **kwargs,
        )
        if started_as_peft and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")  # TRL's copy of the reference would be saved beside the policy
        self._prepare_model()
        adds_nothing = getattr(peft_config, "init_lora_weights", True) is not False
        self._starts_at_reference = args.disable_dropout and adds_nothing  # with dropout they differ at every step

    def _new_collator(
        self, args: MODPOConfig, objectives: Mapping[str, Objective], calibrations: Mapping[str, Calibration]
    ) -> GroupCollator:
        return self.collator_class(
            weights=args.vector,
            signs={name: objective.sign for name, objective in objectives.items()},
            calibrations=calibrations,
            objective=args.objective,
            regression_below=args.smallest_primary_weight(),
            packing=args.packing,
            # Gradients and metrics meet after every pass: with unequal numbers of them, processes would wait.
            max_packed_tokens=(
                sys.maxsize if args.world_size > 1 else most_packed_tokens(args.max_packed_tokens, args.device.type)
            ),
        )

    def _prepare_model(self) -> None:
        """Make the model that TRL has prepared one of which log-probs are read our way."""
        self._causal_lm = causal_lm(self.model)
        join_adapters(self)
        if self.args.disable_dropout:
            disable_functional_dropout(self._causal_lm)
        if self.args.packing:
            attach_packed_forward(self._causal_lm)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # scored data is tokenized

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # scored data holds them

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
        tokenizer = self.processing_class
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        with torch.no_grad(), self.compute_loss_context_manager():
            return loss, *pair_logits(model, parts, pad)

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
        if self.state.global_step == 0 and self.model.training and self._starts_at_reference:
            self._require_reference_at_start(logps.detach(), inputs["ref_logps"])
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
        return padded_readings(model, inputs["prompts_ids"], inputs["responses_ids"])

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

    def _require_reference_at_start(self, logps: Tensor, ref_logps: Tensor) -> None:
        """Refuse log-probs of the responses, (M,), that are not those of the reference, (M,)."""
        tolerance = STEP_0_TOLERANCE.get(self._causal_lm.dtype, STEP_0_TOLERANCE_16_BIT)
        if self.accelerator.mixed_precision in ("bf16", "fp16"):
            tolerance = STEP_0_TOLERANCE_16_BIT
        off = ((logps - ref_logps).abs() / ref_logps.abs().clamp(min=10)).mean().item()
        if off > tolerance:
            problem = f"at step 0 policy and reference should be one model, but their log-probs are {off:.1%} apart"
            fix = "score the data again with the model that training starts from"
            raise InputError(Problem("train_dataset", "ref_logps", problem, fix))

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
