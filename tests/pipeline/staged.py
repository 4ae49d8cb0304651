"""An experiment with stages before its sweep: a policy from demonstrations and two rewards from pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from modpo.experiment.sections import Experiment
from tests.kit import WORDS, write_experiment, write_rows

USER, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}


def rows(prompts: int = 14) -> list[dict[str, Any]]:
    """Two label sets: `kind` prefers the friendlier answer, `brief` the shorter one. Every fourth prompt disagrees."""
    found = []
    for i in range(prompts):
        word = WORDS[i % len(WORDS)]
        responses = [f"good {word}", f"bad {word} and more", f"good {word} and more!"]
        pairs = {"kind": [[0, 1], [2, 1]], "brief": [[0, 2], [0, 1]][: 1 + i % 2]}
        if i % 4 == 3:
            pairs = {"kind": [[0, 1], [1, 2]], "brief": [[2, 0]]}
        found.append({"prompt": f"{i}: the {word}? ", "responses": responses, "pairs": pairs})
    return found


def write_demonstrations(path: Path, count: int = 8) -> None:
    words = [WORDS[i % len(WORDS)] for i in range(count)]
    write_rows(path, [{"prompt": f"d{i} the {w}? ", "completion": f"good {w}"} for i, w in enumerate(words)])


def without_sft(experiment: Experiment) -> Experiment:
    return replace(experiment, sft=None)


def write_staged(folder: Path, model: Path) -> Path:
    write_rows(folder / "rows.jsonl", rows())
    write_demonstrations(folder / "demonstrations.jsonl")
    return write_experiment(
        folder,
        model,
        sft="""
  path: FOLDER/demonstrations.jsonl
  eval_prompts: 2
  arguments: {learning_rate: 1e-2, num_train_epochs: 2, per_device_train_batch_size: 4}""",
        data="{path: FOLDER/rows.jsonl, eval_prompts: 4, max_length: 64}",
        objectives="""
  kind: {pairs: kind}
  brief:
    reward:
      train: {kind: reward_model, pairs: brief, arguments: {learning_rate: 1e-2, num_train_epochs: 1}}
  friendly:
    reward:
      train: {kind: implicit, pairs: kind, arguments: {beta: 0.3, learning_rate: 2e-2, num_train_epochs: 3}}""",
        sweep="{weights: [{kind: 0.5, brief: 0.25, friendly: 0.25}]}",
        evaluation="{max_new_tokens: 6, bootstrap: 50}",
    )
