"""`modpo sweep`: every preference vector of an experiment, then the front."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace

from modpo.base.errors import InputError, Problem
from modpo.cli.stages import add_experiment_arguments, experiment_of

HELP = "train every preference vector, measure them, draw the front"


def add_arguments(parser: ArgumentParser) -> None:
    """An experiment, --no-evaluate."""
    add_experiment_arguments(parser)
    parser.add_argument("--no-evaluate", action="store_true", help="train only; `modpo evaluate` measures later")


def run(args: Namespace) -> int:
    """Run the stages before, train, measure and draw; for each method and seed, where the experiment compares some.

    Points that failed are named when the others are safe.

    Raises:
        InputError: the experiment has no preference vectors; a comparison that is not to be measured.
        PartialFailure: some points could not be trained.
    """
    experiment = experiment_of(args)
    if not experiment.sweep.weights:
        fix = "add `sweep: {grid: 5}` to the file, or train one vector with `modpo train --weights`"
        raise InputError(Problem(experiment.where("sweep"), "sweep", "there are no preference vectors", fix))
    if experiment.comparison is not None:
        if args.no_evaluate:
            fix = "leave one of the two out"
            raise InputError(Problem("--no-evaluate", "", "goes not with `comparison`, which measures", fix))

        from modpo.comparison.run import run_comparison

        run_comparison(experiment, command_of(args))
        return 0

    from modpo.pipeline.stages import run_pipeline

    run_pipeline(experiment, evaluate=not args.no_evaluate)
    return 0


def command_of(args: Namespace) -> str:
    """What was typed, for a shell."""
    overrides = [part for override in args.overrides for part in ("--set", override)]
    trust = ["--trust-remote-code"] if args.trust_remote_code else []
    return shlex.join(["modpo", "sweep", args.experiment, *overrides, *trust])
