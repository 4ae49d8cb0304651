"""One policy for every preference vector: a low-rank adapter per objective, active together, steered by their scales.

    weight update at w  =  sum_i c_i(w) B_i A_i,    c_i(w) = 1/K + spread (w_i - 1/K)

log pi_w is affine in w (paper, section 3.1: pi_w proportional to pi_ref exp(sum_i w_i r_i / beta)), so the policies of
a front are one smooth family. Rewards and reference log-probs are cached numbers, so the loss of any w costs nothing
more: each batch, or each few prompts of it, draws a w of its own from a Dirichlet distribution and is trained with
MODPO's loss for it.
Since the weights sum to 1, a part of the update that does not depend on w needs no adapter of its own. With `spread` 1
the scales are the weights. The family of policies is the same with any other, but with 1 the difference between the
adapters of two objectives enters by w_i - 1/K and is learned that much more slowly than what they share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer.utils import disable_dropout_in_model

from modpo.base.errors import InputError, Problem
from modpo.base.simplex import Weights, spread_out
from modpo.experiment.objectives import NAME
from modpo.experiment.primary import smallest_primary_weight
from modpo.models.combine import not_plain, steer
from modpo.training.collator import GroupCollator
from modpo.training.config import MODPOConfig
from modpo.training.trainer import MODPOTrainer

GRID = 1000  # drawn weights are multiples of 1 / GRID: a weight is 0 or at least that
FIRST_ADAPTER = "default"  # what TRL and PEFT call the adapter that a trainer makes


@dataclass
class ContinuousConfig(MODPOConfig):
    """`MODPOConfig` for a policy of every preference vector.

    `weights` names the objectives. Its numbers, all above 0, are the vector at which the data is checked and the
    held-out loss is computed; training draws its own. `regression_below` is 1/K if it is not given, since the vectors
    that are drawn come close to the border.
    """

    concentration: float = field(
        default=1.0,
        metadata={"help": "Of the Dirichlet distribution that vectors are drawn from: 1 is uniform on the simplex."},
    )
    spread: float = field(
        default=2.0,
        metadata={"help": "Scales of the adapters are 1/K + spread (w - 1/K). 1: the weights themselves."},
    )
    prompts_per_draw: int | None = field(
        default=None, metadata={"help": "Prompts that share a drawn vector. Default: a batch."}
    )

    def smallest_primary_weight(self) -> float:
        return smallest_primary_weight(self.regression_below, len(self.vector), continuous=True)

    def _refused(self) -> Iterator[Problem]:
        yield from super()._refused()
        for name, number in (("concentration", self.concentration), ("spread", self.spread)):
            if not number > 0:
                yield Problem("ContinuousConfig", name, f"is {number}", "give a number above 0")
        if self.prompts_per_draw is not None and self.prompts_per_draw < 1:
            yield Problem("ContinuousConfig", "prompts_per_draw", f"is {self.prompts_per_draw}", "give at least 1")
        if len(self.vector) < 2:
            yield Problem("ContinuousConfig", "weights", "one objective has one vector", "use MODPOTrainer")
        for name, weight in self.vector.items():
            if weight == 0:
                fix = "give every objective a weight: at this vector the data is checked"
                yield Problem("ContinuousConfig", f"weights.{name}", "is 0", fix)
            if not NAME.fullmatch(name):
                fix = "use letters, digits, `.`, `_` and `-`: it names a folder"
                yield Problem("ContinuousConfig", f"weights.{name}", "cannot name a folder", fix)


class ContinuousTrainer(MODPOTrainer):
    """Trains one policy for all preference vectors: `MODPOTrainer` with an adapter per objective.

    Draws come from torch's generator, whose state a checkpoint holds.

    Args:
        peft_config: of each adapter; plain LoRA. The other arguments are those of `MODPOTrainer`.

    Raises:
        InputError: as `MODPOTrainer`, and an adapter that cannot be steered.
    """

    args: ContinuousConfig
    data_collator: Any

    def __init__(
        self, model: str | PreTrainedModel, *, args: ContinuousConfig, peft_config: PeftConfig, **kwargs: Any
    ) -> None:
        if problem := not_plain(peft_config.to_dict()):
            fix = "give a plain LoraConfig: nothing but low-rank updates of linear layers can be steered"
            raise InputError(Problem("ContinuousTrainer", "peft_config", problem, fix))
        super().__init__(model, args=args, peft_config=peft_config, **kwargs)
        self.adapters = adapter_names(list(args.vector))
        for adapter in list(self.adapters.values())[1:]:
            self.model.add_adapter(adapter, peft_config)
        if args.disable_dropout:  # TRL did so when there was one adapter
            disable_dropout_in_model(self.model)
        self.model.base_model.set_adapter(list(self.adapters.values()))
        self._at_vector: GroupCollator = self.data_collator
        self.data_collator = _rows  # which pairs are read depends on the vector, which is drawn with the batch

    def at_weights(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of rows -> parts, each with the vector, (K,), drawn for its prompts. Parts stay as they are."""
        if "parts" in batch:
            return batch
        rows, parts = batch["rows"], []
        size = self.args.prompts_per_draw or len(rows)
        for start in range(0, len(rows), size):
            collator = replace(self._at_vector, weights=draw(list(self.args.vector), self.args.concentration))
            # What is trainable at a vector inside the simplex, as all rows are, is so on its border.
            parts += collator(rows[start : start + size])["parts"]
        return {"parts": parts}

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The batch's loss at `args.weights`: the same vector each time, so that two evaluations compare."""
        inputs.update(self._at_vector(inputs["rows"]))
        return super().prediction_step(model, inputs, *args, **kwargs)

    def steer(self, weights: Tensor) -> None:
        """Scale the adapters for the policy at a preference vector, (K,)."""
        scales = spread_out(dict(zip(self.adapters.values(), weights.tolist(), strict=True)), self.args.spread)
        steer(self.model, scales)

    def save_policy(self, folder: Path) -> None:
        """One plain PEFT folder per objective, as PEFT saves it."""
        for name, adapter in self.adapters.items():
            (folder / name).mkdir(parents=True)
            state = get_peft_model_state_dict(self.model, adapter_name=adapter)
            tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
            save_file(tensors, folder / name / "adapter_model.safetensors", metadata={"format": "pt"})
            self.model.peft_config[adapter].save_pretrained(folder / name)


def adapter_names(objectives: Sequence[str]) -> dict[str, str]:
    """The adapter of each objective; the first is the one that TRL makes. A module's name holds no dot."""
    first, *others = objectives
    return {first: FIRST_ADAPTER, **{name: f"objective_{n}" for n, name in enumerate(others, start=1)}}


def draw(objectives: Sequence[str], concentration: float) -> Weights:
    """A preference vector of K weights from a symmetric Dirichlet distribution, rounded to multiples of 1 / GRID."""
    drawn = torch.distributions.Dirichlet(torch.full((len(objectives),), concentration, dtype=torch.float64)).sample()
    steps = torch.round(drawn * GRID).long()
    steps[steps.argmax()] += GRID - steps.sum()  # rounding may leave a step or two over
    return {name: n / GRID for name, n in zip(objectives, steps.tolist(), strict=True)}


def _rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": rows}
