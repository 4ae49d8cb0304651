"""What training an experiment is expected to take, from the lengths of a sample of its prompt groups."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psutil

from modpo.data.prompt_group import Pair
from modpo.experiment.methods import CONTINUOUS
from modpo.experiment.sections import Experiment
from modpo.inspection.estimate import (
    HEAP_SHARE,
    Memory,
    Rates,
    Work,
    packed_work,
    scoring_seconds,
    training_flops,
    training_memory,
    training_seconds,
)
from modpo.inspection.model_shape import ModelShape, model_shape
from modpo.inspection.token_statistics import Lengths, forward_passes
from modpo.models.folders import device
from modpo.models.reference import ReferenceModel
from modpo.training.arguments import most_packed_tokens

if TYPE_CHECKING:
    from torch import Tensor

MEASURED_SECONDS = 0.5  # for each of the device's rates


@dataclass(frozen=True)
class ExpectedCost:
    """What training is expected to take."""

    shape: ModelShape
    memory: Memory
    largest: Work  # forward pass
    trainings: int  # one a preference vector; of a continuous policy one for all
    steps: int  # optimizer steps of one training
    training: Work  # of all trainings
    training_flops: float
    training_seconds: float  # of all trainings
    scoring_seconds: float  # reference log-probs of all groups, once
    rates: Rates
    device: str


def expected_cost(
    experiment: Experiment,
    reference: ReferenceModel,
    lengths: Sequence[Lengths],
    pairs: Sequence[Sequence[Pair]],
    *,
    groups: int,
) -> ExpectedCost:
    """Memory and time of a sweep by MODPO, on one process of this machine.

    Args:
        lengths, pairs: of a sample of the training data, with at least one pair.
        groups: how many prompt groups the training data has.

    Raises:
        InputError: adapters for modules that the model does not have.
    """
    training, where = experiment.training, device()
    paired = [group for group, p in zip(lengths, pairs, strict=True) if p]
    passes = forward_passes(
        paired,
        batch_size=training.per_device_train_batch_size,
        most_tokens=most_packed_tokens(training.max_packed_tokens, where),
        packing=training.packs,
        seed=experiment.seed,
    )
    largest = max(passes, key=lambda work: work.read)
    shape = _shape(experiment, reference)
    steps, seen = _steps(experiment, trained=round(groups * len(paired) / len(lengths)))
    trainings = 1 if experiment.sweep.mode == CONTINUOUS else max(len(experiment.sweep.weights), 1)
    work = sum(passes, start=Work()) * (seen / len(paired) * trainings)
    scored = sum((packed_work(*group) for group in lengths), start=Work()) * (groups / len(lengths))
    checkpointing = training.gradient_checkpointing
    rates = measured_rates(shape, experiment.model.number_format, int(largest.read), device=where)
    return ExpectedCost(
        shape=shape,
        memory=training_memory(
            shape,
            largest,
            longest=max(prompt + max(responses) for prompt, responses in paired),
            packing=training.packs,
            gradient_checkpointing=checkpointing,
            heap_share=HEAP_SHARE if where == "cpu" else 0,
            process=psutil.Process().memory_info().rss if where == "cpu" else 0,
        ),
        largest=largest,
        trainings=trainings,
        steps=steps,
        training=work,
        training_flops=training_flops(shape, work, gradient_checkpointing=checkpointing),
        training_seconds=training_seconds(shape, work, rates, gradient_checkpointing=checkpointing),
        scoring_seconds=scoring_seconds(shape, scored, rates),
        rates=rates,
        device=where,
    )


def measured_rates(shape: ModelShape, dtype: str, rows: int, *, device: str) -> Rates:
    """How fast this device is at the model's MLP with `rows` tokens: a matrix product, and silu(x) * y."""
    import torch

    number = getattr(torch, dtype)
    tokens = torch.ones(max(rows, 1), shape.hidden, dtype=number, device=device)
    weight = torch.ones(shape.hidden, shape.intermediate, dtype=number, device=device)
    gate = tokens @ weight
    product = _seconds(lambda: tokens @ weight)
    elementwise = _seconds(lambda: torch.nn.functional.silu(gate) * gate)
    return Rates(2 * gate.numel() * shape.hidden / product, gate.nbytes / elementwise)


def _seconds(operation: Callable[[], Tensor]) -> float:
    """Seconds that one call takes, measured for about `MEASURED_SECONDS`.

    By hand: importing torch's own timer imports what compiles C++ with it, and that fails beside some versions of
    setuptools.
    """
    import torch

    def finish() -> float:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return time.perf_counter()

    operation()  # the first call is slower
    calls, start = 0, finish()
    while time.perf_counter() - start < MEASURED_SECONDS:
        operation()
        calls += 1
    return (finish() - start) / calls


def _shape(experiment: Experiment, reference: ReferenceModel) -> ModelShape:
    lora = experiment.lora
    if lora and experiment.sweep.mode == CONTINUOUS:  # an adapter per objective takes what one of all their ranks takes
        lora = replace(lora, r=lora.r * len(experiment.objectives))
    return model_shape(reference.folder, experiment.model, lora, experiment.where("lora.target_modules"))


def _steps(experiment: Experiment, trained: int) -> tuple[int, float]:
    """(optimizer steps, prompt groups read) of one training on so many groups."""
    training = experiment.training
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    if training.max_steps > 0:
        return training.max_steps, training.max_steps * per_step
    seen = trained * training.num_train_epochs
    return math.ceil(math.ceil(trained / per_step) * training.num_train_epochs), seen
