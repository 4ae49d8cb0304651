"""The demo with `--fast`: how long it takes, its longest silence, and whether its front follows the weights.

Where the embedded model cannot be had, the same stages on the model that the other parts read: what random weights
learn says nothing, so only the run itself is looked at.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_check.rows import MEASURED, Row, judged
from benchmarks.gpu_check.setting import Setting
from modpo import quickstart
from modpo.base.errors import ModpoError
from modpo.front.schema import Front, read_front
from modpo.models.embedded import fetch_model
from modpo.models.folders import default_cache_dir

MOST_SILENCE = 15.0  # seconds
EXPERIMENT = Path(quickstart.__file__).parent / "experiment.yaml"
PROMPTS = EXPERIMENT.with_name("prompts.jsonl")


@dataclass(frozen=True)
class Run:
    """How a command went: its seconds, the longest time without a line, its exit status and its last line."""

    seconds: float
    silence: float
    status: int
    last: str


def check(setting: Setting) -> Iterator[Row]:
    output = Path(setting.work) / "demo"
    obstacle = "small sizes" if setting.small else without_embedded_model()
    if obstacle is None:
        command, name = ["quickstart", "--fast", "--output", str(output)], "modpo quickstart --fast"
    else:
        command, name = on_another_model(setting, output), f"its stages on {Path(setting.model).name} ({obstacle})"
    run = watched(command)
    result = f"{run.seconds:.0f} s" if run.status == 0 else f"exit {run.status}: {run.last}"[:200]
    yield judged("demo", name[:60], result, run.status == 0, seconds=run.seconds)
    yield silence(run, setting)
    if run.status == 0:
        front = read_front(output)
        yield follows(front) if obstacle is None else points(front)


def silence(run: Run, setting: Setting) -> Row:
    name, text = f"silent for at most {MOST_SILENCE:.0f} s", f"{run.silence:.0f} s"
    if setting.small:  # a machine without a card is often busy, and its start-up slow
        return Row("demo", "longest silence", text, MEASURED, {"silence": run.silence})
    return judged("demo", name, text, run.silence <= MOST_SILENCE, silence=run.silence)


def without_embedded_model() -> str | None:
    """Why the embedded model is not here; None: it is."""
    try:
        fetch_model(default_cache_dir(), progress=lambda _line: None)
    except ModpoError as error:
        return " ".join(str(error).split())
    return None


def on_another_model(setting: Setting, output: Path) -> list[str]:
    """The demo's experiment with a model of one's own, and with less of everything where sizes are small."""
    train, held_out, new = (4, 2, 4) if setting.small else (32, 48, 40)
    overrides = {
        "model.model_name_or_path": setting.model,
        "data.path": output / "data" / "train.jsonl",
        "data.eval_path": output / "data" / "held_out.jsonl",
        "data.eval_prompts": held_out,
        "sample.prompts": PROMPTS,
        "sample.max_prompts": train,
        "sample.held_out": held_out,
        "sample.max_new_tokens": new,
        "evaluation.max_new_tokens": new,
        "sweep.grid": 3,
        "output_dir": output,
    }
    return [
        "sweep",
        str(EXPERIMENT),
        *(word for item in overrides.items() for word in ("--set", "{}={}".format(*item))),
    ]


def watched(command: list[str]) -> Run:
    """Run `modpo`, its lines passed on to this part's log."""
    started = last = time.monotonic()
    silence, line = 0.0, ""
    process = subprocess.Popen(
        [sys.executable, "-m", "modpo", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        now = time.monotonic()
        silence, last = max(silence, now - last), now
        print(f"{now - started:6.1f} s  {line}", end="", file=sys.stderr, flush=True)
    status = process.wait()
    ended = time.monotonic()
    return Run(ended - started, max(silence, ended - last), status, line.strip())


def follows(front: Front) -> Row:
    """At each end of the front the policy is the better one in the objective that has more weight there."""
    gains = {}
    for objective in front.objectives:
        name = objective.name
        by_weight = sorted(front.points, key=lambda point: (point.weights or {})[name])
        low, high = (point.scores[name].mean for point in (by_weight[0], by_weight[-1]))
        gains[name] = (high - low) * (1 if objective.maximize else -1)
    text = ", ".join(f"{name} {gain:+.2f}" for name, gain in gains.items())
    return judged("demo", "more weight, better score", text, min(gains.values()) > 0, **gains)


def points(front: Front) -> Row:
    return Row("demo", "points measured", str(len(front.points)), MEASURED, {"points": len(front.points)})
