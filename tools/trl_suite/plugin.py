"""A plugin of pytest: serves the stand-ins, puts a trainer in DPOTrainer's place, limits tests, writes down their ends.

`python -m tools.trl_suite` starts pytest with it and says in TRL_SUITE what to do, as JSON of `Plan`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tools.trl_suite.stand_ins import data_set

PLAN = "TRL_SUITE"
GIB = 1024**3
OUTSIDE = ("VLM", "Vision", "Slow")  # classes of tests that train models of pictures, or large ones
INSIDE = "test_vision_dataset_with_text_model_raises"  # of these the one that trains a text model


@dataclass(frozen=True)
class Plan:
    """What a run of pytest does."""

    trainer: str  # "trl" or "modpo"
    stand_ins: str
    results: str  # file that each test's end is added to, a line of JSON each
    seconds: int  # a test may take
    gibibytes: int  # the tests may take, address space


@dataclass(frozen=True)
class End:
    """How a test ended."""

    test: str
    outcome: str  # passed, failed or skipped
    line: str  # the error's last line, or why it was skipped
    clear: bool = False  # the error says what to do


def pytest_configure() -> None:
    plan = _plan()
    limit = plan.gibibytes * GIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    serve_data_sets(Path(plan.stand_ins))
    PUT_IN_PLACE[plan.trainer]()


def _plan() -> Plan:
    return Plan(**json.loads(os.environ[PLAN]))


def serve_data_sets(folder: Path) -> None:
    """Have `datasets.load_dataset` find the stand-ins under the Hub's names."""
    import datasets

    load = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **kwargs: Any) -> Any:
        found = data_set(folder, path, name)
        if found is None:
            raise FileNotFoundError(f"no stand-in for the data set {path} {name}")
        return load(str(found), **kwargs)

    datasets.load_dataset = load_dataset


def put_modpo_in_place() -> None:
    """The two names of TRL that a script of MODPO changes. With one objective, MODPO's loss is DPO's."""
    import trl

    import modpo

    trl.DPOConfig, trl.DPOTrainer = modpo.MODPOConfig, modpo.MODPOTrainer


def let_trl_run_on_a_cpu() -> None:
    """TRL's config asks for bf16, and without an accelerator the CPU has to be asked for too."""
    import torch
    import trl

    if not torch.accelerator.is_available():
        _ask_for(trl.DPOConfig, use_cpu=True)


def _ask_for(config: Any, **defaults: Any) -> None:
    """Give arguments that have no default, or another one."""
    init = config.__init__

    def with_defaults(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **(defaults | kwargs))

    config.__init__ = with_defaults


PUT_IN_PLACE = {"trl": let_trl_run_on_a_cpu, "modpo": put_modpo_in_place}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    outside = [item for item in items if _is_outside(item)]
    config.hook.pytest_deselected(items=outside)
    items[:] = [item for item in items if item not in outside]


def _is_outside(item: pytest.Item) -> bool:
    return any(word in item.nodeid for word in OUTSIDE) and not item.name.startswith(INSIDE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} seconds")

    seconds = _plan().seconds
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        return (yield)
    finally:
        signal.alarm(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    name = item.nodeid.rpartition("::")[2]
    if report.skipped:
        _write(End(name, "skipped", _telling_line(call.excinfo.value) if call.excinfo else ""))
    elif report.failed:
        assert call.excinfo is not None
        error = call.excinfo.value
        _write(End(name, "failed", f"{type(error).__name__}: {_telling_line(error)}", _is_clear(error)))
    elif report.when == "call":
        _write(End(name, "passed", ""))
    return report


def _write(end: End) -> None:
    with Path(_plan().results).open("a") as results:
        results.write(json.dumps(asdict(end)) + "\n")


def _telling_line(error: BaseException) -> str:
    """The last line; of a failed assertion the first, since pytest writes the values below it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:  # a bare assert
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}"
    asserted = isinstance(error, AssertionError) and not lines[0].startswith("Regex pattern")
    return lines[0 if asserted else -1]


def _is_clear(error: BaseException | None) -> bool:
    """Whether a user reads what to do: in the error, or in the one that a test wanted to read otherwise."""
    from modpo.base.errors import ModpoError

    while error is not None:
        if isinstance(error, ModpoError):
            return True
        error = error.__context__
    return False
