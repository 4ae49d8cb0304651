"""The experiment that is run under faults, and what a run of it leaves on disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modpo.base.files import MANIFEST
from tests import kit
from tests.kit import WORDS, write_rows

FILE = "experiment.yaml"
ROWS = "rows.jsonl"
PROMPTS, HELD_OUT = 10, 3
POINTS = ("kind0.75-concise0.25", "kind0.25-concise0.75")

# What differs between two equal runs: how long they took.
TIMED = ("training_log.json", "progress.json")

REWARD = '''
"""Minus the words of a response. The environment makes it fail, be slow, or tell what it was asked."""

import json
import os

from modpo.rewards.loading import PROBE_ROWS

calls, held = 0, False


def score(prompts, completions):
    global calls, held
    calls += 1
    fifo = os.environ.get("REWARD_HOLD")
    if fifo and not held and len(completions) > PROBE_ROWS:  # fewer only probe
        held = True
        with open(fifo + ".held", "w") as file:
            file.write(str(os.getpid()))
        open(fifo + ".go").close()  # opens when somebody opens the other end
    scores = [-float(len(completion.split())) for completion in completions]
    for variable, value in (("REWARD_RAISES_ON", None), ("REWARD_NAN_ON", float("nan"))):
        bad = os.environ.get(variable)
        for i, prompt in enumerate(prompts):
            if bad is not None and prompt == bad:
                if value is None:
                    raise ZeroDivisionError("a reward that breaks")
                scores[i] = value
    if log := os.environ.get("REWARD_LOG"):
        with open(log, "a") as file:
            asked = [[os.getpid(), calls, prompt, c] for prompt, c in zip(prompts, completions)]
            file.writelines(json.dumps(row) + "\\n" for row in asked)
    return scores
'''


def write_experiment(folder: Path, model: Path) -> None:
    """Rows, a reward and the experiment: two objectives, two vectors, four steps each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fault_reward.py").write_text(REWARD)
    write_rows(folder / ROWS, rows())
    kit.write_experiment(
        folder,
        model,
        lora="{r: 2}",
        data=f"{{path: {ROWS}, eval_prompts: {HELD_OUT}, max_length: 64}}",
        objectives="""
  kind: {pairs: data}
  concise: {reward: "fault_reward:score", unit: words, calibration: standardise}""",
        training="{per_device_train_batch_size: 2, learning_rate: 1e-2, logging_steps: 1, save_steps: 1}",
        evaluation="{max_new_tokens: 4, bootstrap: 20, report_prompts: 1}",
        output_dir="run",
        cache_dir="cache",
    )


def rows() -> list[dict[str, str]]:
    """Two pairs a prompt; the chosen answer is the friendlier one, and not always the shorter."""
    found = []
    for i in range(PROMPTS):
        word = WORDS[i % len(WORDS)]
        for extra in (0, 1):
            chosen = f"good {word}" + " and more" * ((i + extra) % 3) + "!" * extra
            rejected = f"bad {word}" + " and more" * ((i // 2 + extra) % 2) + "?" * extra
            found.append({"prompt": prompt(i), "chosen": chosen, "rejected": rejected})
    return found


def prompt(i: int) -> str:
    """The prompt of rows 2 i + 1 and 2 i + 2."""
    return f"{i}: the {WORDS[i % len(WORDS)]}? "


# --- what lies on disk --------------------------------------------------------------------------------------


def published_folders(folder: Path) -> Iterator[Path]:
    """Folders with a manifest of their own: columns, calibrations, points, measurements, checkpoints."""
    for path in sorted(folder.rglob(MANIFEST)):
        if not any(part.startswith(".tmp-") for part in path.relative_to(folder).parts):
            yield path.parent


def results(folder: Path) -> dict[str, Any]:
    """What a finished run has found out, by place: equal for equal runs, bit for bit.

    Left out is how long things took, and the manifests that hold the hash of that.
    """
    found: dict[str, Any] = {}
    for path in published_folders(folder):
        scored = "scored" in path.parts
        for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != ".lock"):
            if scored and file.name == MANIFEST:
                found[str(file.relative_to(folder))] = _timeless(json.loads(file.read_text("utf-8")), "cost")
            elif file.name not in (MANIFEST, *TIMED):
                found[str(file.relative_to(folder))] = file.read_bytes()
    found["run"] = sorted(path.name for path in folder.glob("run/[!.]*") if path.is_file())
    for name in ("responses.jsonl", "front.json"):
        path = folder / "run" / name
        if path.is_file():
            found[name] = path.read_text("utf-8")
    if "front.json" in found:
        found["front.json"] = _timeless(json.loads(found["front.json"]))
    return found


def _timeless(value: Any, *more: str) -> Any:
    """JSON without seconds and memory, without what hashes them, and without `more`."""
    if isinstance(value, dict):
        left_out = ("seconds", "peak_memory_bytes", "sha256", *more)
        return {key: _timeless(v, *more) for key, v in value.items() if key not in left_out}
    return [_timeless(v, *more) for v in value] if isinstance(value, list) else value


def finished(folder: Path) -> dict[str, tuple[int, str]]:
    """Inode and hash of every file that must not be touched again: shards, points, measurements, calibrations."""
    found = {}
    for path in published_folders(folder):
        if "checkpoint-" in path.name:
            continue  # goes when its run is done
        files = [p for p in path.rglob("*") if p.is_file() and p.name != ".lock"]
        if (path / MANIFEST).is_file() and "scored" in path.parts and not path.name.startswith("calibration-"):
            files = [path / name for name in _entered(path)]  # the manifest itself grows
        for file in filter(Path.is_file, files):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            found[str(file.relative_to(folder))] = (os.stat(file).st_ino, digest)
    return found


def _entered(column: Path) -> list[str]:
    """Shards that stand in a column's manifest; none where it cannot be read."""
    try:
        return list(json.loads((column / MANIFEST).read_text("utf-8"))["shards"])
    except (ValueError, KeyError, TypeError):
        return []


def label(path: str, folder: Path) -> str:
    """What a path is, whatever its key or the random part of its name: "cache/scored/reward/00000.arrow"."""
    place = os.path.relpath(folder / path, folder)
    return re.sub(r"\.tmp-[0-9a-f]{8}-|-[0-9a-f]{24}", "", place)
