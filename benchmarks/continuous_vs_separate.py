"""One continuous policy against one training per vector: the same model, data, rewards and held-out prompts.

    python -m benchmarks.continuous_vs_separate --output runs/continuous_vs_separate [--seeds 3] [--vectors 9]

For each seed nine policies are trained one by one and one continuous policy once, each as the quickstart does; both
fronts are measured on the same prompts. Hypervolumes are those of `front.json`, of the mean scores down to its
reference point; above the reference: down to the reference policy's own scores. The intervals of their ratios are
bootstraps over seeds and prompts. The run can be stopped: what is there is kept. Results go to
benchmarks/results/continuous_vs_separate.json and docs/continuous_vs_separate.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modpo.base.costs import Cost
from modpo.evaluation.measured import RESPONSES
from modpo.experiment.sections import Experiment
from modpo.front.schema import Front, Point, read_front
from modpo.pipeline.stages import run_pipeline
from modpo.quickstart import FULL, quickstart_experiment

RESULTS = Path(__file__).parent / "results" / "continuous_vs_separate.json"
PICTURE = Path(__file__).parents[1] / "docs" / "continuous_vs_separate.png"
MODES = ("separate", "continuous")
RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/continuous_vs_separate"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--vectors", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=FULL.train_prompts, help="prompts to train on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the experiment")
    args = parser.parse_args()
    fronts: dict[str, list[Front]] = {mode: [] for mode in MODES}
    for seed in range(args.seeds):
        for mode in MODES:
            run_pipeline(_experiment(args, seed, mode))
            fronts[mode].append(read_front(_folder(args.output, seed, mode)))
    result = compare(fronts)
    result["command"] = {"seeds": args.seeds, "vectors": args.vectors, "prompts": args.prompts, "set": args.set}
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    draw(fronts, PICTURE)
    print(table(fronts))
    print(json.dumps(result, indent=2))


def _folder(output: Path, seed: int, mode: str) -> Path:
    return output / f"seed{seed}" / mode


def _experiment(args: argparse.Namespace, seed: int, mode: str) -> Experiment:
    """The quickstart's experiment; both modes of a seed train on the same answers."""
    size = replace(FULL, train_prompts=args.prompts, vectors=args.vectors, separate=mode == "separate")
    data = args.output / f"seed{seed}" / "data"
    overrides = [f"data.path={data / 'train.jsonl'}", f"data.eval_path={data / 'held_out.jsonl'}", *args.set]
    return replace(quickstart_experiment(_folder(args.output, seed, mode), size, overrides), seed=seed)


def compare(fronts: dict[str, list[Front]]) -> dict[str, Any]:
    """The numbers that the results hold."""
    samples = {mode: [_samples(front) for front in fronts[mode]] for mode in MODES}
    costs = {mode: [_cost(front) for front in fronts[mode]] for mode in MODES}
    single = [cost / len(front.points) for cost, front in zip(costs["separate"], fronts["separate"], strict=True)]
    return {
        "hypervolume_ratio": _ratio(samples, _corner(fronts["separate"][0])),
        "hypervolume_ratio_above_reference": _ratio(samples, None),
        "cost_in_single_runs": float(np.mean([c / one for c, one in zip(costs["continuous"], single, strict=True)])),
        "tokens_in_single_runs": _tokens(fronts["continuous"]) / _tokens(fronts["separate"]),
        "hypervolume": {mode: [front.hypervolume.mean for front in fronts[mode]] for mode in MODES},
        "seconds": {mode: [round(cost, 1) for cost in costs[mode]] for mode in MODES},
        "steps_that_follow_the_weight": _by_objective(fronts, _steps_right),
        "rank_correlation_with_the_weight": _by_objective(fronts, _rank_correlation),
    }


def _cost(front: Front) -> float:
    """Seconds of training from scratch, scoring left out: both share it."""
    return front.continuous.seconds if front.continuous else sum(point.cost.seconds for point in front.points)


def _tokens(fronts: Sequence[Front]) -> float:
    """Tokens of one training, mean over the trainings of all seeds."""
    trainings = [cost for front in fronts for cost in ([front.continuous] if front.continuous else _costs(front))]
    return float(np.mean([cost.tokens for cost in trainings]))


def _costs(front: Front) -> list[Cost]:
    return [point.cost for point in front.points]


def _by_objective(fronts: dict[str, list[Front]], number: Callable[[Front, str], Any]) -> dict[str, Any]:
    """A number of each seed's front, by objective."""
    return {
        mode: [{o.name: number(front, o.name) for o in front.objectives} for front in fronts[mode]] for mode in MODES
    }


def _steps_right(front: Front, name: str) -> str:
    """Of the steps from vector to vector, how many move the objective the way its weight moves."""
    _, means = _along(front, name)
    return f"{sum(b > a for a, b in itertools.pairwise(means))} of {len(means) - 1}"


def _rank_correlation(front: Front, name: str) -> float:
    """Spearman's, of an objective's mean score with its weight: 1 where every vector is in its order."""
    from scipy.stats import spearmanr

    return round(float(spearmanr(*_along(front, name)).statistic), 3)


def _along(front: Front, name: str) -> tuple[list[float], list[float]]:
    """Weights of an objective, ascending, and its mean scores, larger is better."""
    points = sorted(front.points, key=lambda point: (point.weights or {})[name])
    sign = 1 if next(o for o in front.objectives if o.name == name).maximize else -1
    return [(point.weights or {})[name] for point in points], [sign * point.scores[name].mean for point in points]


def _corner(front: Front) -> np.ndarray:
    """The reference point, larger is better, (K,)."""
    return np.array([(1 if o.maximize else -1) * front.hypervolume.reference_point[o.name] for o in front.objectives])


def _samples(front: Front) -> np.ndarray:
    """Mean reward of each prompt's answers, larger is better, (1 + P, N, K), the reference first."""
    names = [o.name for o in front.objectives]
    signs = [1.0 if o.maximize else -1.0 for o in front.objectives]
    scores: dict[str, dict[int, list[list[float]]]] = {}
    for line in (front.folder / RESPONSES).read_text("utf-8").split("\n"):
        if line:
            answer = json.loads(line)
            by_prompt = scores.setdefault(answer["policy"], {}).setdefault(answer["prompt_index"], [])
            by_prompt.append([sign * answer["rewards"][name] for name, sign in zip(names, signs, strict=True)])
    policies = ["reference", *(point.name for point in front.points)]
    return np.array([[np.mean(scores[p][i], axis=0) for i in sorted(scores[p])] for p in policies])


def _ratio(samples: dict[str, list[np.ndarray]], corner: np.ndarray | None) -> dict[str, float] | None:
    """The continuous front's hypervolume over the separate one's, means over seeds; interval over seeds and prompts.

    None where the separate front has none to divide by, in some resample.
    """
    seeds, prompts = len(samples["separate"]), int(samples["separate"][0].shape[1])
    rng = np.random.default_rng(0)

    def ratio(chosen: Sequence[int], rows: np.ndarray) -> float:
        volumes = {mode: [_volume(samples[mode][s][:, rows].mean(1), corner) for s in chosen] for mode in MODES}
        below = float(np.mean(volumes["separate"]))
        return float(np.mean(volumes["continuous"])) / below if below > 0 else np.nan

    everything = ratio(range(seeds), np.arange(prompts))
    drawn = [
        ratio(list(rng.integers(seeds, size=seeds)), np.asarray(rng.integers(prompts, size=prompts)))
        for _ in range(RESAMPLES)
    ]
    if np.isnan([everything, *drawn]).any():
        return None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": everything, "ci_low": float(low), "ci_high": float(high)}


def _volume(means: np.ndarray, corner: np.ndarray | None) -> float:
    """Hypervolume of the points of (1 + P, K) down to a corner, else to the first row, the reference policy's."""
    import moocore

    return float(moocore.hypervolume(means[1:], ref=means[0] if corner is None else corner, maximise=True))


def table(fronts: dict[str, list[Front]]) -> str:
    """Scores and KL by vector, means over seeds."""
    names = [o.name for o in fronts["separate"][0].objectives]
    head = " / ".join([*names, "KL"])
    lines = ["| w | " + " | ".join(f"{mode}: {head}" for mode in MODES) + " |", "| --- " * 3 + "|"]
    for i, point in enumerate(fronts["separate"][0].points):
        cells = []
        for mode in MODES:
            means = [np.mean([front.points[i].scores[name].mean for front in fronts[mode]]) for name in names]
            kl = np.mean([front.points[i].kl.mean for front in fronts[mode]])
            cells.append(" / ".join(f"{mean:.3g}" for mean in [*means, kl]))
        lines.append(f"| {' / '.join(f'{w:.2g}' for w in _weights(point))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _weights(point: Point) -> list[float]:
    return list((point.weights or {}).values())


def draw(fronts: dict[str, list[Front]], path: Path) -> None:
    """Both fronts of every seed, and the reference."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    first, second = fronts["separate"][0].objectives[:2]
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for mode, colour, marker in (("separate", "#78818f", "o"), ("continuous", "#2166c4", "s")):
        for seed, front in enumerate(fronts[mode]):
            x, y = ([point.scores[o.name].mean for point in front.points] for o in (first, second))
            axes.plot(x, y, marker=marker, color=colour, alpha=0.8, lw=1, label=None if seed else f"{mode}, each seed")
    start = fronts["separate"][0].reference.scores
    axes.plot(start[first.name].mean, start[second.name].mean, "*", ms=14, color="#222", label="reference")
    for objective, axis in ((first, axes.xaxis), (second, axes.yaxis)):
        axis.set_label_text(f"{objective.name} ({objective.unit}) →")
        if not objective.maximize:
            axis.set_inverted(True)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
