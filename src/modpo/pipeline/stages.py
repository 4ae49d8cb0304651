"""The stages of an experiment in their order: sft, sample, rewards, then the sweep and what is measured of it.

Each stage is skipped when its result is there and was made from the same data with the same settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from modpo.base.errors import PartialFailure
from modpo.base.failures import FAILED, fix_of
from modpo.base.progress import working
from modpo.experiment.proxy import PROXY, REWARD, by_proxies, needs_proxies
from modpo.experiment.sections import Experiment, Resolved, RewardSection, resolved
from modpo.models.dtype_choice import with_dtype
from modpo.pipeline.run import EVALUATE, REPORT, SWEEP, Stages
from modpo.scored.answers import SAMPLE


@dataclass(frozen=True)
class Stage:
    """A step before the sweep. `run` takes the experiment and gives it back with what the step made filled in."""

    name: str  # "sft", "sample", "reward <objective>" or "proxy <objective>"
    run: Callable[[Experiment], Experiment]


def run_pipeline(experiment: Experiment, *, evaluate: bool = True, expected: Mapping[str, float] | None = None) -> None:
    """Every stage, from demonstrations to the report.

    Args:
        evaluate: False stops after the sweep.
        expected: see `Stages`; a stage that the run has not is of no account.

    Raises:
        PartialFailure: some points could not be trained; the others are measured all the same.
    """
    after = [SWEEP, EVALUATE, REPORT] if evaluate else [SWEEP]
    vectors = len(experiment.sweep.weights)
    with Stages([*(stage.name for stage in stages_before(experiment)), *after], expected or {}) as stages:
        with working("checks of data and settings"):
            check_early(experiment, measurable=evaluate)
        failed = _run(prepare(experiment, stages), stages, evaluate=evaluate)
    if failed:
        fix = fix_of([experiment.output_dir / FAILED / f"{name}.json" for name in failed])
        raise PartialFailure(
            f"{experiment.output_dir}: {len(failed)} of {vectors} points failed: {', '.join(failed)}; "
            f"fix: {fix}; finished points are kept"
        )


def _run(experiment: Resolved, stages: Stages, *, evaluate: bool) -> list[str]:
    """The sweep, and what is measured of it; the names of the points that failed."""
    from modpo.evaluation.evaluate import evaluate_sweep
    from modpo.methods.sweep import run_sweep
    from modpo.report import write_report

    with stages.stage(SWEEP):
        failed = run_sweep(experiment)
    if evaluate and len(failed) < len(experiment.sweep.weights):
        with stages.stage(EVALUATE):
            evaluate_sweep(experiment)
        with stages.stage(REPORT):
            write_report(experiment.output_dir)
    return failed


def check_early(experiment: Experiment, *, measurable: bool) -> None:
    """Problems of data and settings are reported before anything is trained, where the data is there already."""
    from modpo.evaluation.evaluate import require_measurable
    from modpo.pipeline.preflight import check_training

    if experiment.sweep.weights:
        check_training(experiment, experiment.sweep.weights[0])
    if measurable and experiment.sample is None:
        require_measurable(experiment)


def prepare(
    experiment: Experiment, run: Stages | None = None, *, last: str | None = None, proxies: bool = False
) -> Resolved:
    """Run the stages before the sweep that the experiment has, and give it back with their results filled in.

    The model becomes that of `sft`, each reward's and proxy's `train` the folder that it was trained into, and proxies
    stand for rewards where the method scores answers of its own. One that is resolved is given back as it is.

    Args:
        run: the run that these stages belong to; default: one of these stages alone.
        last: the stage to stop after; default: all of them.
        proxies: train those that the method has no use for, too.

    Raises:
        InputError, IntegrityError, NumericError: see the stages.
    """
    stages = stages_before(experiment, proxies=proxies)
    filled = experiment
    with nullcontext(run) if run else Stages([stage.name for stage in stages]) as run:
        for stage in stages:
            with run.stage(stage.name):
                filled = stage.run(filled)
            if stage.name == last:
                break
    named = with_dtype(experiment, writes=bool(stages))  # each stage does so by itself, once it has checked its input
    if stages:
        filled = replace(filled, model=replace(filled.model, dtype=named.model.dtype), lines=named.lines)
    ready = resolved(filled if stages else named, asked=named)
    if ready.comparison is not None or not needs_proxies(ready):  # each method of a comparison on its own
        return ready
    return by_proxies(ready) if any(objective.proxy for objective in ready.objectives.values()) else ready


def stages_before(experiment: Experiment, *, proxies: bool = False) -> list[Stage]:
    """What is to run before the experiment can be scored; nothing once it has run."""
    if isinstance(experiment, Resolved):
        return []
    stages = []
    if experiment.sft is not None:
        stages.append(Stage("sft", _with_sft))
    if experiment.sample is not None:
        stages.append(Stage(SAMPLE, _with_samples))
    for role in (REWARD, PROXY) if proxies or needs_proxies(experiment) else (REWARD,):
        for name, objective in experiment.objectives.items():
            section: RewardSection | None = getattr(objective, role)
            if section is not None and section.train is not None:
                stages.append(Stage(f"{role} {name}", partial(_with_trained, name=name, role=role)))
    return stages


def _with_sft(experiment: Experiment) -> Experiment:
    from modpo.pipeline.sft import train_sft

    model = replace(experiment.model, model_name_or_path=str(train_sft(experiment)), revision=None)
    return replace(experiment, model=model)


def _with_samples(experiment: Experiment) -> Experiment:
    from modpo.pipeline.sample import sample_experiment

    sample_experiment(experiment)
    return experiment


def _with_trained(experiment: Experiment, name: str, role: str) -> Experiment:
    from modpo.pipeline.reward import resolved_section, train_reward

    ready: dict[str, Any] = {role: resolved_section(experiment, name, train_reward(experiment, name, role), role)}
    objective = replace(experiment.objectives[name], **ready)
    return replace(experiment, objectives={**experiment.objectives, name: objective})
