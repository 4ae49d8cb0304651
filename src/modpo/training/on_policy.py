"""TRL's RLOO and GRPO trainers with our prompts, our sampling and our packed forward, and resumable.

What is learned, and how, is TRL's. Ours is what costs the time: answers are sampled from the policy with its adapter
merged where that is faster, and log-probs are read as packed rows, each prompt once for all its answers. The methods of
TRL that are replaced give the same results; what is touched stands in `modpo.training.trl_contract`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOTrainer, RLOOTrainer

from modpo.base.costs import count
from modpo.data.tokens import tokenize_prompt
from modpo.experiment.chat_settings import FIELD
from modpo.forward.attention import packed_attention
from modpo.forward.logprobs import attach_packed_forward, detach_packed_forward, packed_token_logps
from modpo.forward.low_rank import causal_lm, join_products, uncast_inputs
from modpo.forward.packability import require_packable
from modpo.forward.packing import pack
from modpo.forward.padded_generation import bare_generation, folded_head
from modpo.models.quantized import is_quantized
from modpo.training.arguments import disable_functional_dropout
from modpo.training.resumable import Resumable

if TYPE_CHECKING:
    from modpo.data.prompt_group import Text


@dataclass(frozen=True)
class Reading:
    """How a trainer reads texts.

    Args:
        max_prompt_length: tokens; a longer prompt is cut as in training on pairs.
        ends: tokens that end an answer.
        packing: read log-probs as packed rows.
    """

    max_prompt_length: int
    ends: list[int]
    packing: bool = True


class OnPolicy(Resumable):
    """What both trainers have in common.

    Args:
        reading: how texts are read.

    Rows may hold variables of the chat template, as JSON, in a column `chat_template_kwargs`. The other arguments are
    those of TRL's trainer.
    """

    # Whether log-probs of fresh answers are read for the loss's ratio before they are read to be trained on.
    reads_twice = False
    model_wrapped: Any  # TRL's: what answers are sampled from

    def __init__(self, model: PreTrainedModel, *args: Any, reading: Reading, **kwargs: Any) -> None:
        if reading.packing:
            require_packable(model)
        super().__init__(model, *args, **kwargs)
        self.reading = reading
        self._causal_lm = causal_lm(self.model)
        join_products(self)
        if self.args.disable_dropout:
            disable_functional_dropout(self._causal_lm)
        # Layers that are run again in the backward pass would have to be run with packed attention.
        self._packs = reading.packing and not self.args.gradient_checkpointing and not self.aux_loss_enabled
        for packed in [self._causal_lm, self.ref_model] if self._packs else []:
            if packed is not None:  # with adapters the reference is the policy without them
                attach_packed_forward(packed)
        self.eos_token_ids = reading.ends
        if not self.args.use_vllm:
            self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids
        self._asked: list[dict[str, Any]] = []  # variables of the chat template, by prompt that is being answered
        self._kept: tuple[dict[_Row, int], Tensor] | None = None  # log-probs with their gradient, and whose they are
        self._fresh = False  # answers were sampled whose log-probs were not read yet

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        self._asked = [json.loads(row.get(FIELD, "{}")) for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _tokenize_prompts(self, prompts: Sequence[Text]) -> tuple[list[list[int]], None, dict[str, Any]]:
        longest, asked = self.reading.max_prompt_length, zip(prompts, self._asked, strict=True)
        return [tokenize_prompt(p, self._tokenizer, kwargs, longest=longest) for p, kwargs in asked], None, {}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self._sampling_model():
            found = super()._generate_single_turn(*args, **kwargs)
        answers = found[0] if isinstance(found, tuple) else found
        self.tokens_generated += sum(map(len, answers))
        count(tokens_generated=sum(map(len, answers)), forward_passes=max(map(len, answers)))
        self._kept, self._fresh = None, True
        return found

    @contextmanager
    def _sampling_model(self) -> Iterator[None]:
        """Within it, what TRL samples from is the policy and nothing else, in the form that is fastest."""
        wrapped = self.model_wrapped
        on_cpu = self.accelerator.device.type == "cpu"
        if isinstance(self.model, PeftModel) and on_cpu and not is_quantized(self.model):
            # There an adapter beside its base halves the speed of generation: as in measuring, it is merged.
            self.model_wrapped = copy.deepcopy(self.model).merge_and_unload()
            detach_packed_forward(self.model_wrapped)
        sampled = self.accelerator.unwrap_model(self.model_wrapped)
        try:
            with bare_generation(sampled), folded_head(sampled):
                yield
        finally:
            self.model_wrapped = wrapped

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Log-probs of B answers of at most C tokens, 0 behind an answer's end.

        Entropy is estimated from the sampled tokens: the mean of -log pi(token), which costs nothing.

        Args:
            input_ids, attention_mask: prompts, padded on the left, and answers, padded on the right: (B, P + C).
            logits_to_keep: C.
            batch_size: answers that are read at a time where no gradient is computed. Default: all.

        Returns:
            Log-probs in nats (B, C); entropies (B, C) if asked for, else None; None.
        """
        trained = torch.is_grad_enabled()
        if not self._packs:
            self.tokens_read += int(attention_mask.sum()) if trained else 0
            passes = -(-len(input_ids) // (batch_size or len(input_ids)))
            count(forward_passes=passes, backward_passes=passes if trained else 0)
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        rows = _rows(input_ids, attention_mask, logits_to_keep)
        if trained and self._kept is not None:
            places, kept = self._kept
            self._kept, logps = None, kept[[places[row] for row in rows]]
        elif self._reused():
            with torch.enable_grad():
                kept = self._packed(model, rows, logits_to_keep)
            self._kept, logps = ({row: place for place, row in enumerate(rows)}, kept), kept.detach()
        else:
            size = batch_size or len(rows)
            parts = [rows[start : start + size] for start in range(0, len(rows), size)]
            logps = torch.cat([self._packed(model, part, logits_to_keep) for part in parts])
        self._fresh = False
        return logps, -logps.detach() if compute_entropy else None, None

    def _reused(self) -> bool:
        """Whether the log-probs asked for now will be asked for again to be trained on: then they are read once."""
        once = self.args.steps_per_generation == self.num_iterations == 1 and self.model.training
        return self.reads_twice and self._fresh and once and not torch.is_grad_enabled()

    def _packed(self, model: nn.Module, rows: Sequence[_Row], width: int) -> Tensor:
        """Log-probs of B answers' tokens, (B, C) with C = `width`, each prompt read once for all its answers."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, (prompt, _) in enumerate(rows):
            groups.setdefault(prompt, []).append(i)
        packed = pack(list(groups), [[rows[i][1] for i in members] for members in groups.values()])
        if torch.is_grad_enabled():
            self.tokens_read += packed.layout.length
        with (
            self.accelerator.autocast(),
            uncast_inputs(self),
            packed_attention(model if model is self.ref_model else self._causal_lm),
        ):
            flat = packed_token_logps(model, packed.to(self.accelerator.device))  # (N,)
        order = [i for members in groups.values() for i in members]
        at = [i * width + place for i in order for place in range(len(rows[i][1]))]
        empty = torch.zeros(len(rows) * width, dtype=flat.dtype, device=flat.device)
        return empty.index_put((torch.tensor(at, device=flat.device),), flat).view(len(rows), width)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._buffered_inputs is None:  # so that resumed training knows where among its answers it is
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
        return super().training_step(*args, **kwargs)


class OnPolicyRLOO(OnPolicy, RLOOTrainer):
    """RLOO: REINFORCE with the mean of the prompt's other answers as the baseline; KL is part of the reward."""

    reads_twice = True


class OnPolicyGRPO(OnPolicy, GRPOTrainer):
    """GRPO: REINFORCE with the mean of the prompt's answers as the baseline; KL is part of the loss."""


_Row = tuple[tuple[int, ...], tuple[int, ...]]  # ids of a prompt, ids of an answer


def _rows(input_ids: Tensor, attention_mask: Tensor, width: int) -> list[_Row]:
    """The ids of B prompts and answers without the padding, from (B, P + C) ids and mask, C = `width`."""
    ids, read = input_ids.cpu(), attention_mask.bool().cpu()
    prompts, answers = (
        [tuple(row[kept].tolist()) for row, kept in zip(ids[:, columns], read[:, columns], strict=True)]
        for columns in (slice(None, -width), slice(-width, None))
    )
    return list(zip(prompts, answers, strict=True))
