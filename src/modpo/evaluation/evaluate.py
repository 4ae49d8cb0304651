"""A sweep measured: the reference and every finished point on the same held-out prompts, into `front.json`,
`front.csv`, `responses.jsonl`, `scores.jsonl` and `ledger.json`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from modpo.base.costs import NOTHING, Cost
from modpo.base.errors import InputError, Problem
from modpo.base.files import locked, new_file, read_manifest, remove_unfinished
from modpo.base.progress import Progress, say, working
from modpo.data.groups import PromptGroups, group_rows
from modpo.data.loading import load_groups
from modpo.data.prompt_group import PromptGroup
from modpo.data.rows import rows_from_list
from modpo.evaluation.answers import Questions
from modpo.evaluation.measured import RESPONSES, Measured, json_lines
from modpo.evaluation.measurer import Measurer
from modpo.evaluation.scorers import is_separate, measuring_rewards, probe_evaluation_rewards, scorer_warnings
from modpo.evaluation.sweep_costs import sweep_ledger
from modpo.experiment.methods import CONTINUOUS
from modpo.experiment.proxy import is_proxied
from modpo.experiment.sections import Experiment, Resolved, RewardSection, resolved
from modpo.forward.packing_choice import with_packing
from modpo.front.audit import Audit, audit
from modpo.front.ledger import cost_summary, write_ledger
from modpo.front.pareto import bootstrap_mean, default_reference_point, dominated_flags, measure_hypervolume
from modpo.front.schema import Estimate, FailedPoint, Front, FrontObjective, HeldOut, Point, write_front
from modpo.methods.sweep import failures, finished_points, require_same_experiment
from modpo.models.dtype_choice import with_dtype
from modpo.models.reference import ReferenceModel
from modpo.policies.point import REFERENCE_POINT, SweptPoint
from modpo.rewards.accuracy import held_out_accuracies
from modpo.scored.calibration import UNCALIBRATED
from modpo.scored.data import REWARD_PREFIX, ScoredData
from modpo.scored.of_experiment import experiment_scorer, load_ready_rewards
from modpo.scored.scorer import Scorer

SCORES = "scores.jsonl"


def evaluate_sweep(experiment: Experiment) -> Front:
    """Measure what is trained, write the front into the sweep's folder and return it.

    Raises:
        InputError: nothing is trained yet. EnvironmentFault: another process is at work on the sweep.
    """
    experiment = resolved(with_dtype(experiment, writes=False))
    require_same_experiment(experiment.asked)
    trained = list(finished_points(experiment))
    if not trained:
        raise InputError(Problem(str(experiment.output_dir), "points", "no trained point", "train the sweep first"))
    with locked(experiment.output_dir):
        remove_unfinished(experiment.output_dir)
        return _measure(experiment, trained)


def _measure(experiment: Resolved, trained: list[SweptPoint]) -> Front:
    reference = ReferenceModel.of(experiment)
    experiment = with_packing(experiment, reference)
    scorer = experiment_scorer(experiment, reference)
    for warning in scorer_warnings(experiment):
        say(f"warning: {warning}")
    train, held_out = load_groups(experiment)
    scored = scorer.score(train)
    rewards = measuring_rewards(experiment, scorer.rewards)
    prompts = _measured_prompts(experiment, held_out, rewards)
    answered = scorer.score(prompts, scored.calibrations) if len(rewards) < len(experiment.objectives) else None
    questions = questions_of(experiment, reference, prompts, packing=experiment.training.packs)
    measurer = Measurer(experiment, questions, rewards, answered, scored.calibrations, scorer.rewards)
    with Progress("measured", 1 + len(trained), "policies", spans=True) as progress:
        with progress.part():
            measured = [measurer.measure(REFERENCE_POINT)]
        measurer = replace(measurer, audited=_audited(scorer, measurer, measured[0]))
        for point in trained:
            with progress.part():
                measured.append(measurer.measure(point))
    with working("the front: hypervolume and intervals"):
        front = _front(measurer, trained, measured)
    by_name = dict(zip([point.name for point in (REFERENCE_POINT, *trained)], measured, strict=True))
    _write_lines(experiment.output_dir / RESPONSES, (answer for policy in measured for answer in policy.answers))
    _write_lines(experiment.output_dir / SCORES, (_scores(experiment, *named) for named in by_name.items()))
    ledger = sweep_ledger(experiment, scored, trained, {name: policy.cost for name, policy in by_name.items()})
    write_ledger(ledger, experiment.output_dir)
    write_front(front)
    say(f"from scratch: {cost_summary(ledger)}")
    say(f"front: {experiment.output_dir / 'front.json'}")
    return front


def require_measurable(experiment: Experiment) -> None:
    """Check, before anything is trained, that every objective can be measured on the held-out prompts.

    Raises:
        InputError: an objective is known by pairs or a column alone, and no held-out prompt has any; a reward that
            cannot be had.
    """
    _, held_out = load_groups(experiment)
    to_train = {n for n, o in experiment.objectives.items() if o.reward is not None and o.reward.train is not None}
    scoring = set(measuring_rewards(resolved(experiment), load_ready_rewards(experiment))) | to_train
    prompts = _measured_prompts(experiment, held_out, scoring)
    probe_evaluation_rewards(resolved(experiment), prompts)
    questions_of(experiment, ReferenceModel.of(experiment, writes=False), prompts)


def questions_of(
    experiment: Experiment, reference: ReferenceModel, prompts: PromptGroups, *, packing: bool = False
) -> Questions:
    """The prompts as every policy is asked them.

    Raises:
        InputError: answers could be longer than the model has positions.
    """
    room = experiment.data.prompt_room(experiment.evaluation.max_new_tokens)
    questions = Questions(reference, prompts, experiment.evaluation, room, packing)
    questions.require_room(experiment.where("evaluation.max_new_tokens"))
    return questions


def _measured_prompts(experiment: Experiment, held_out: PromptGroups, rewards: Container[str]) -> PromptGroups:
    """All held-out prompts; only those with pairs when an objective cannot score new answers."""
    unscored = [name for name in experiment.objectives if name not in rewards]
    if not unscored:
        return held_out
    label_sets = [experiment.label_sets.get(name) for name in unscored]

    def compares(group: PromptGroup) -> bool:
        """Whether there is something to compare for one of the objectives that cannot score new answers."""
        return any(group.pairs.get(s) if s else len(group.responses) > 1 for s in label_sets)

    prompts = held_out.select([i for i, group in enumerate(held_out) if compares(group)])
    if not len(prompts):
        fix = "hold out rows with pairs, or give the objective a reward function"
        problem = f"no held-out pairs to measure {', '.join(unscored)} on"
        raise InputError(Problem(experiment.where("data"), "data.eval_path", problem, fix))
    return prompts


@working("the audit's answers, scored")
def _audited(scorer: Scorer, measurer: Measurer, reference: Measured) -> ScoredData | None:
    """Several answers to each held-out prompt, scored: the data's own, else those that the reference gave.

    None where an objective has no reward, or no prompt two answers.
    """
    if any(objective.reward is None for objective in scorer.objectives.values()):
        return None
    prompts = measurer.questions.prompts
    own = [i for i, group in enumerate(prompts) if len(group.responses) > 1]
    if own:
        return scorer.score(prompts.select(own), measurer.calibrations)
    if not all(reward.scores_new_text for reward in scorer.rewards.values()):
        return None
    given: dict[int, list[Any]] = {}
    for answer in reference.answers:
        if text := answer["response"]:
            chat = [{"role": "assistant", "content": text}] if prompts.conversational else text
            given.setdefault(answer["prompt_index"], []).append(chat)
    several = {i: texts for i, texts in given.items() if len(texts) > 1}
    rows = [{**prompts[i].fields, **prompts[i].prompt_row, "responses": texts} for i, texts in several.items()]
    if not rows:
        return None
    return scorer.score(group_rows(rows_from_list(rows, "answers of the reference")), measurer.calibrations)


def _audit(measurer: Measurer, point: SweptPoint, measured: Measured) -> Audit | None:
    """The point's audit on `measurer.audited`."""
    if measurer.audited is None:
        return None
    data, margins = measurer.audited.dataset(), {}
    for name, calibration in measurer.audited.calibrations.items():
        sign, raws = measurer.experiment.objectives[name].sign, data[REWARD_PREFIX + name]
        margins[name] = [[calibration.apply(raw, sign) or 0.0 for raw in row] for row in raws]
    return audit(point.weights or {}, measured.log_ratios, margins, beta=measurer.experiment.training.beta)


def _front(measurer: Measurer, trained: list[SweptPoint], measured: list[Measured]) -> Front:
    """Everything in raw units; intervals by bootstrap over prompts."""
    experiment, names = measurer.experiment, list(measurer.experiment.objectives)
    measured_with = {name: value for name, value in asdict(experiment.evaluation).items() if name != "rewards"}
    objectives = [_objective(measurer, name) for name in names]
    maximize = [objective.maximize for objective in objectives]
    samples = np.array([[m.scores(name) for name in names] for m in measured])  # (1 + P, K, N)
    samples = samples.transpose(0, 2, 1)  # (1 + P, N, K)
    hypervolume, contributions, dominated = measure_hypervolume(
        samples[1:],
        maximize,
        default_reference_point(samples[0], maximize),
        names=names,
        **_resampling(experiment),
    )
    reference_dominated = bool(dominated_flags(samples.mean(axis=1), maximize)[0])
    reference = _point(experiment, measured[0], REFERENCE_POINT, samples[0], reference_dominated)
    points = [
        _point(experiment, m, p, s, bool(d), float(c), _audit(measurer, p, m))
        for m, p, s, d, c in zip(measured[1:], trained, samples[1:], dominated, contributions, strict=True)
    ]
    return Front(
        folder=experiment.output_dir,
        objectives=objectives,
        reference=reference,
        points=points,
        hypervolume=hypervolume,
        evaluation={**measured_with, "prompts": len(measurer.questions.prompts)},
        failed=[FailedPoint(**record) for record in failures(experiment)],
        continuous=_continuous_cost(experiment),
    )


def _continuous_cost(experiment: Experiment) -> Cost | None:
    """The cost of the one training, where the points were baked from it."""
    if experiment.method.mode != CONTINUOUS:
        return None
    manifest = read_manifest(experiment.output_dir / CONTINUOUS)
    return Cost.of(manifest["cost"]) if manifest else NOTHING


def _objective(measurer: Measurer, name: str) -> FrontObjective:
    experiment, asked = measurer.experiment, measurer.experiment.asked.objectives[name]
    accuracy = held_out_accuracies(experiment).get(name)
    scored, reward = name in measurer.rewards, experiment.evaluation.rewards.get(name, asked.reward) or RewardSection()
    return FrontObjective(
        name,
        # Agreement is better when it is larger, whatever the direction of the objective it stands in for.
        maximize=asked.maximize if scored else True,
        unit=asked.unit if scored else "pair agreement",
        scale=experiment.objectives[name].scale,
        proxy=asked.proxy.description if asked.proxy and is_proxied(experiment, name) else "",
        measured_by=reward.description if scored else "agreement on held-out pairs",
        separate=is_separate(experiment, name),
        calibration=measurer.calibrations.get(name, UNCALIBRATED),
        held_out=HeldOut(**accuracy) if accuracy else None,
    )


def _point(
    experiment: Experiment,
    measured: Measured,
    point: SweptPoint,
    samples: np.ndarray,
    dominated: bool,
    contribution: float | None = None,
    audited: Audit | None = None,
) -> Point:
    best, resampling = point.best_of_n, _resampling(experiment)
    scores = {name: bootstrap_mean(samples[:, k], **resampling) for k, name in enumerate(experiment.objectives)}
    folder = None if best else point.folder
    return Point(
        name=point.name,
        scores=scores,
        kl=Estimate(best.kl_bound, 0.0) if best else _estimate(measured.numbers("kl")),
        response_length=_estimate(measured.numbers("tokens")),
        cost=point.cost,
        dominated=dominated,
        weights=point.weights,
        adapter=folder.relative_to(experiment.output_dir).as_posix() if folder else None,
        best_of_n=best.n if best else None,
        hypervolume_contribution=contribution,
        audit=audited,
    )


def _resampling(experiment: Experiment) -> dict[str, Any]:
    settings = experiment.evaluation
    return {"resamples": settings.bootstrap, "confidence": settings.confidence, "seed": settings.seed}


def _estimate(per_prompt: np.ndarray) -> Estimate:
    """Mean over prompts and its standard error."""
    n = len(per_prompt)
    return Estimate(float(per_prompt.mean()), float(per_prompt.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0)


def _scores(experiment: Experiment, name: str, policy: Measured) -> dict[str, Any]:
    """What the means are of: a policy's numbers on each prompt, in the order of the prompts."""
    scores = {objective: policy.scores(objective).tolist() for objective in experiment.objectives}
    numbers = {key: policy.numbers(key).tolist() for key in ("kl", "tokens")}
    return {"policy": name, "scores": scores, **numbers}


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with new_file(path) as temporary:
        temporary.write_text(json_lines(rows), "utf-8")
