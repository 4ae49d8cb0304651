"""What things took: counted against the model's own calls, kept with what is cached, added up in the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from modpo.base.costs import NOTHING, Cost, Meter, count
from modpo.base.memory import CLEAR_REFS
from modpo.data.chat_template import stop_ids
from modpo.forward.frozen import logps_by_group
from modpo.forward.generate import generate
from modpo.forward.packability import require_packable
from modpo.forward.sampled import SamplingSettings
from modpo.models.reference import ReferenceModel

# --- a cost -------------------------------------------------------------------------------------------------


def test_costs_add_up() -> None:
    """Everything is summed, but memory and devices, which are there at a time. 90 s on two devices are 0.05 hours."""
    first = Cost(60.0, 10, 1, 2, 3, peak_memory_bytes=500, devices=2)
    second = Cost(30.0, 5, 4, 4, 4, peak_memory_bytes=700)
    assert first + second == Cost(90.0, 15, 5, 6, 7, 700, 2)
    assert (first + second).device_hours == pytest.approx(0.05)
    assert sum([first, second], NOTHING) == first + second
    assert first.share(2) == Cost(30.0, 5, 0, 1, 1, 500, 2)


def test_a_cost_is_read_from_older_manifests() -> None:
    assert Cost.of({"seconds": 2.5, "tokens": 7, "loss": 0.3}) == Cost(2.5, 7)
    assert Cost.of({"seconds": 2.5}) == Cost(2.5, 0)
    cost = Cost(1.25, 2, 3, 4, 5, 6, 7)
    assert Cost.of(json.loads(json.dumps(cost.written()))) == cost


# --- a meter ------------------------------------------------------------------------------------------------


def test_meters_in_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 15.0, 100.0])
    monkeypatch.setattr("modpo.base.costs.monotonic", lambda: next(clock))
    with Meter() as outer:
        count(tokens=1, forward_passes=1)
        with Meter() as inner:
            count(tokens_generated=5, forward_passes=2, backward_passes=1)
    count(tokens=1000)  # nobody is looking
    assert (inner.cost.seconds, outer.cost.seconds) == (5.0, 100.0)
    assert timeless(inner.cost) == Cost(0.0, 0, 5, 2, 1)
    assert timeless(outer.cost) == Cost(0.0, 1, 5, 3, 1)


def test_a_meter_is_closed_by_an_error() -> None:
    meter = Meter()
    with pytest.raises(ZeroDivisionError), meter:
        count(tokens=2, forward_passes=1 // 0)
    count(tokens=2)
    assert meter.cost.tokens == 0


def test_devices_are_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with Meter() as meter:
        pass
    assert meter.cost.devices == 4


@pytest.mark.skipif(
    not CLEAR_REFS.exists() or torch.cuda.is_available(), reason="the peak of a process cannot be reset"
)
def test_peak_memory_is_that_of_the_stage() -> None:
    """200 MB that come and go are seen by the meter they lie in and by those around it, not by the next."""
    size = 200_000_000
    with Meter() as outer:
        with Meter() as greedy:
            np.ones(size, dtype=np.uint8).sum()
        with Meter() as modest:
            pass
    assert greedy.cost.peak_memory_bytes > modest.cost.peak_memory_bytes + 0.9 * size
    assert outer.cost.peak_memory_bytes >= greedy.cost.peak_memory_bytes


def timeless(cost: Cost) -> Cost:
    return replace(cost, seconds=0.0, peak_memory_bytes=0)


# --- what counts itself -------------------------------------------------------------------------------------


@contextmanager
def calls(model: nn.Module) -> Iterator[list[bool]]:
    """Of every call of the model, whether it kept its gradient."""
    seen: list[bool] = []
    handle = model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def reference(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    from modpo.experiment.sections import ModelSection

    return ReferenceModel(ModelSection(str(tiny_model), dtype="float32"), tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("packing", [True, False])
def test_generation_counts_tokens_and_steps(reference: ReferenceModel, packing: bool) -> None:
    settings = SamplingSettings(stop_ids(reference.tokenizer, conversational=False), max_new_tokens=6)
    require_packable(reference.model)
    with Meter() as meter, calls(reference.model.base_model) as seen:
        answers = generate(
            reference.model, reference.tokenizer, [[5, 6], [7], [8]], settings, packing=packing, batch_size=2
        )
    tokens = sum(len(answer.ids) for group in answers for answer in group)
    assert timeless(meter.cost) == Cost(0.0, 0, tokens, len(seen), 0)


@pytest.mark.parametrize("packing", [True, False])
def test_reading_counts_passes(reference: ReferenceModel, packing: bool) -> None:
    prompts, responses = [[5, 6, 7], [8, 9]], [[[10, 11], [12]], [[13, 14]]]
    list(logps_by_group(reference.model, prompts, responses, packing=packing))  # the first tries how the model packs
    with Meter() as meter, calls(reference.model) as seen:
        list(logps_by_group(reference.model, prompts, responses, packing=packing))
    assert timeless(meter.cost) == Cost(0.0, 0, 0, len(seen), 0)
    assert len(seen) == (1 if packing else 2)
