"""`modpo evaluate`: measure what a sweep trained."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from modpo.base.errors import InputError, Problem
from modpo.cli.experiment_arguments import add_experiment_arguments, experiment_of

HELP = "measure the reference and the trained policies"


def add_arguments(parser: ArgumentParser) -> None:
    """An experiment."""
    add_experiment_arguments(parser)


def run(args: Namespace) -> int:
    """Measure the finished points of the experiment's folder.

    Raises:
        InputError: a comparison, which is many sweeps.
    """
    experiment = experiment_of(args)
    if experiment.comparison is not None:
        fix = "run `modpo sweep`: it measures the sweep of each method, and what is finished is kept"
        raise InputError(Problem(experiment.where("comparison"), "comparison", "is not measured by itself", fix))

    from modpo.evaluation.evaluate import evaluate_sweep
    from modpo.pipeline.stages import prepare

    evaluate_sweep(prepare(experiment))
    return 0
