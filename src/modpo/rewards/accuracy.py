"""How often a trained reward orders held-out pairs as they are labelled, and where it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from modpo.base.files import MANIFEST, read_sealed
from modpo.data.groups import PromptGroups
from modpo.experiment.sections import Experiment, RewardSection
from modpo.rewards.batch import Reward, reward_batch


def reward_folder(experiment: Experiment, name: str) -> Path:
    """Where an objective's trained reward lies, or its proxy: it has one of the two."""
    return experiment.output_dir / "rewards" / name


def held_out_accuracy(reward: Reward, groups: PromptGroups, label_set: str) -> dict[str, float]:
    """How often the chosen response of a pair has the larger reward; a tie counts half.

    The standard error is that of a ratio of sums over prompts, since the pairs of one prompt are not independent.

    Args:
        groups: prompt groups, each with pairs of the label set.

    Returns:
        `accuracy`, `se` (0 for a single prompt), `pairs`, `prompts`.
    """
    scores = reward(reward_batch(groups, range(len(groups))))
    reward.release()
    wins, pairs, first = [], [], 0
    for group in groups:
        own = scores[first : first + len(group.responses)]
        first += len(group.responses)
        wins.append(sum(_win(own, chosen, rejected) for chosen, rejected in group.pairs[label_set]))
        pairs.append(len(group.pairs[label_set]))
    total, n = sum(pairs), len(groups)
    accuracy = sum(wins) / total
    off = sum((won - accuracy * of) ** 2 for won, of in zip(wins, pairs, strict=True))
    se = math.sqrt(off * n / (n - 1)) / total if n > 1 else 0.0
    return {"accuracy": accuracy, "se": se, "pairs": total, "prompts": n}


def _win(scores: Sequence[Any], chosen: int, rejected: int) -> float:
    return 0.5 if scores[chosen] == scores[rejected] else float(scores[chosen] > scores[rejected])


def held_out_accuracies(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Of each objective whose reward modpo trained: `accuracy`, `se`, `pairs` and `prompts` on held-out pairs."""
    found = {}
    for name, objective in experiment.objectives.items():
        reward = objective.reward or RewardSection()
        source = reward_folder(experiment, name) if reward.train else reward.reward_model or reward.implicit
        if source is None:
            continue
        with suppress(OSError, ValueError):  # a model from elsewhere, which may have a manifest of its own
            manifest = read_sealed(Path(source) / MANIFEST)
            if manifest.get("held_out"):
                found[name] = manifest["held_out"]
    return found
