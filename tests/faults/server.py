"""Runs of `python -m modpo`, each in a process of its own, without the seconds that its imports take.

This process imports all of it once and forks for each run. It reads a request a line, as JSON, and answers with one:

    {"arguments": ["sweep", "experiment.yaml"], "folder": "/case", "environment": {}, "setup": ["nan_loss", 1], ...}
    {"code": 3, "orphans": false}

It trains nothing itself: torch's threads do not survive a fork. Shards, and the answers on which a reward is
standardised, are made small, so that a run of two seconds crosses every kind of boundary.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

GROUPS_IN_A_SHARD = 4
TOKENS_OF_AN_ANSWER = 4
NEEDED = (
    "modpo.cli",
    "modpo.pipeline.stages",
    "modpo.methods.sweep",
    "modpo.training.trainer",
    "modpo.evaluation.evaluate",
    "modpo.forward.logprobs",
    "modpo.report.page",
    "modpo.report.picture",
    "transformers.models.llama.modeling_llama",
    "matplotlib.backends.backend_agg",
)


def main() -> None:
    """Serve until standard input ends."""
    for name in NEEDED:
        importlib.import_module(name)
    _make_small()
    _keep_in_memory()
    _answer({"ready": os.getpid()})
    for line in sys.stdin:
        request = json.loads(line)
        _answer(_import_all(request["modules"]) if "modules" in request else _run(request))


def _make_small() -> None:
    import torch
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from modpo.scored import columns
    from modpo.scored import scorer as scoring

    torch.set_num_threads(1)
    get_checkpoint_conversion_mapping("llama")  # a quarter of a second, once a process
    installed = functools.cache(metadata.packages_distributions)  # a good part of a second, for each reward
    installed()
    metadata.packages_distributions = installed
    columns.SHARD_GROUPS = GROUPS_IN_A_SHARD
    small = functools.partial(scoring.AnswerSettings, max_new_tokens=TOKENS_OF_AN_ANSWER)
    scoring.AnswerSettings = small  # type: ignore[misc, assignment]


def _keep_in_memory() -> None:
    """What is there stays as it is: no run walks through all of it when it collects garbage."""
    gc.collect()
    gc.freeze()


def _answer(reply: dict[str, Any]) -> None:
    print(json.dumps(reply), flush=True)


def _import_all(listed: str) -> dict[str, Any]:
    """What a run had imported when it ended, so that the next ones need not."""
    for name in Path(listed).read_text().split():
        if name not in sys.modules and not name.startswith("_"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    _keep_in_memory()
    return {"modules": len(sys.modules)}


def _run(request: dict[str, Any]) -> dict[str, Any]:
    pid = os.fork()
    if pid == 0:
        _become_the_run(request)
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], request["timeout"])[0]:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return {"code": None, "orphans": False}
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(descriptor)
    return {"code": os.waitstatus_to_exitcode(status), "orphans": _end_group(pid)}


def _end_group(leader: int) -> bool:
    """Whether a process that the run had started outlived it."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _become_the_run(request: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where this was started in the background
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
            descriptor = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(descriptor, number)
            os.close(descriptor)
        if request["setup"]:
            import inflicted  # beside this script

            name, *values = request["setup"]
            getattr(inflicted, name)(*values)
        sys.argv = ["modpo", *request["arguments"]]
        runpy.run_module("modpo", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:
        traceback.print_exc()
    if listed := request.get("list_modules"):
        Path(listed).write_text("\n".join(sys.modules))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
