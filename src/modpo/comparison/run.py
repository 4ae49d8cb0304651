"""A comparison run: the stages before the sweep once, then a sweep for each seed and method.

Everything is resumable as a sweep is. After every finished front the comparison is written from the fronts that are
there, so that one that was stopped shows how far it came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from modpo.base.errors import InputError, PartialFailure, Problem
from modpo.base.failures import FAILED, done_or_recorded, fix_of
from modpo.base.files import locked
from modpo.base.progress import say, working
from modpo.comparison.result import Comparison, FailedSweep, compare
from modpo.comparison.table import show
from modpo.comparison.written import write_comparison
from modpo.data.clock import share_date
from modpo.evaluation.evaluate import SCORES
from modpo.experiment.method_rules import method_vectors
from modpo.experiment.methods import CONTINUOUS, METHODS
from modpo.experiment.proxy import by_proxies, without_proxies
from modpo.experiment.sections import ComparisonSection, Experiment, Resolved
from modpo.front.ledger import read_ledger
from modpo.front.schema import FILE, Front, read_front
from modpo.models.dtype_choice import with_dtype
from modpo.models.reference import ReferenceModel
from modpo.pipeline.stages import check_early, prepare, run_pipeline


@dataclass(frozen=True)
class Member:
    """One sweep of a comparison."""

    method: str
    seed: int
    experiment: Resolved

    @property
    def name(self) -> str:
        """`modpo, seed 0`, for the console."""
        return f"{self.method}, seed {self.seed}"


def run_comparison(experiment: Experiment, command: str) -> None:
    """Run what is missing, compare what is there, print the table.

    Args:
        command: what the user typed; it is written beside the numbers.

    Raises:
        InputError, EnvironmentFault, IntegrityError: see the stages; nothing else would run either.
        PartialFailure: a method failed with some seed; the others are compared.
    """
    from modpo.base.files import remove_unfinished
    from modpo.methods.sweep import claim_folder

    check_early(experiment, measurable=True)
    experiment = with_dtype(experiment)
    with locked(experiment.output_dir):
        claim_folder(experiment)
        remove_unfinished(experiment.output_dir)
    prepared = _prepared(experiment)
    members = list(_members(experiment, prepared))
    _ = ReferenceModel.of(prepared).tokenizer  # all policies answer the same prompts, whatever date a template writes
    share_date(experiment.output_dir, (member.experiment.output_dir for member in members))
    done = None
    for number, member in enumerate(members, start=1):
        say(f"sweep {number} of {len(members)}: {member.name}")
        about = {"method": member.method, "seed": member.seed}
        run = partial(run_pipeline, member.experiment)
        with working(member.name):
            made = done_or_recorded(run, member.name, _record(experiment, member.method, member.seed), about)
        if made:
            done = _compare_and_write(experiment, members, member, command)
    if done is not None:
        show(done)
    if failed := _failures(experiment, members):
        fix = fix_of([_record(experiment, sweep.method, sweep.seed) for sweep in failed])
        raise PartialFailure(
            f"{experiment.output_dir}: {len(failed)} of {len(members)} sweeps failed: "
            f"{', '.join(f'{f.method} with seed {f.seed}' for f in failed)}; "
            f"fix: {fix}; what is finished is kept"
        )


def _prepared(experiment: Experiment) -> Resolved:
    """The experiment as each sweep finds it: model and rewards trained, answers sampled, all with its own seed."""
    resolved = replace(prepare(experiment), sft=None)
    if resolved.sample is not None and resolved.sample.seed is None:
        resolved = replace(resolved, sample=replace(resolved.sample, seed=experiment.seed))
    return resolved


def _members(experiment: Experiment, prepared: Resolved) -> Iterator[Member]:
    """All methods with the first seed, then with the second, and so on."""
    section = _section(experiment)
    for seed in section.seeds:
        for method in section.methods:
            needs = METHODS[method]
            name = "modpo" if needs.mode == CONTINUOUS else method
            vectors = method_vectors(method, experiment.sweep.weights, list(experiment.objectives))
            member = replace(
                prepared,
                comparison=None,
                seed=seed,
                sweep=replace(experiment.sweep, weights=vectors, method=name, mode=needs.mode),
                output_dir=experiment.output_dir / method / f"seed{seed}",
            )
            asked = member if needs.new_answers else without_proxies(member)
            trained = by_proxies(member) if needs.new_answers else asked
            yield Member(method, seed, replace(trained, asked=asked))  # nothing before the sweep is left to run


def _section(experiment: Experiment) -> ComparisonSection:
    if experiment.comparison is None:
        fix = "add `comparison: {methods: [modpo, ...]}`"
        raise InputError(Problem(experiment.source, "comparison", "there is no such section", fix))
    return experiment.comparison


def _record(experiment: Experiment, method: str, seed: int) -> Path:
    return experiment.output_dir / FAILED / f"{method}-seed{seed}.json"


def _failures(experiment: Experiment, members: list[Member]) -> list[FailedSweep]:
    paths = [_record(experiment, member.method, member.seed) for member in members]
    return [FailedSweep(**json.loads(path.read_text("utf-8"))) for path in paths if path.is_file()]


def _compare_and_write(experiment: Experiment, members: list[Member], newest: Member, command: str) -> Comparison:
    """Compare the fronts that were measured as the newest was: those of other settings are still to be run again."""
    measure = read_front(newest.experiment.output_dir)
    fronts: dict[str, dict[int, Front]] = {}
    for member in members:
        front = _front(member)
        if front is not None and _is_comparable(front, measure, member):
            fronts.setdefault(member.method, {})[member.seed] = front
    settings = experiment.evaluation
    comparison = compare(fronts, resamples=settings.bootstrap, confidence=settings.confidence)
    comparison = replace(
        comparison, seeds=_section(experiment).seeds, failed=_failures(experiment, members), command=command
    )
    with locked(experiment.output_dir):
        write_comparison(comparison, experiment.output_dir)
    return comparison


def _front(member: Member) -> Front | None:
    folder = member.experiment.output_dir
    with suppress(InputError):  # of another version: it is written anew when its turn comes
        return read_front(folder) if (folder / FILE).is_file() else None
    return None


def _is_comparable(front: Front, measure: Front, member: Member) -> bool:
    return (
        [point.weights for point in front.points] == member.experiment.sweep.weights
        and (front.folder / SCORES).is_file()
        and read_ledger(front.folder) is not None
        and front.evaluation == measure.evaluation
        and front.reference.scores == measure.reference.scores
    )
