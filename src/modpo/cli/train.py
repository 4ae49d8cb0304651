"""`modpo train`: one preference vector, one policy; or the continuous policy of all vectors."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from modpo.cli.stages import add_experiment_arguments, experiment_of
from modpo.cli.weights_option import OPTION, read_weights_option

if TYPE_CHECKING:
    from modpo.base.simplex import Weights
    from modpo.experiment.sections import Experiment

HELP = "train one policy, for one preference vector or for all"


def add_arguments(parser: ArgumentParser) -> None:
    """An experiment, --weights or --continuous, --output."""
    add_experiment_arguments(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(OPTION, metavar="NAME=W,NAME=W", help="for instance positive=0.7,concise=0.3")
    which.add_argument(
        "--continuous", action="store_true", help="the policy of all vectors, an adapter per objective; no point yet"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where the policy goes; default: its place in the sweep's folder, output_dir/points/<name> or "
        "output_dir/continuous; what all vectors share goes to output_dir all the same",
    )


def run(args: Namespace) -> int:
    """Train the policy of one vector, or of all."""
    from modpo.base import simplex
    from modpo.experiment.vectors import as_continuous

    experiment = experiment_of(args)
    if args.continuous:
        experiment = as_continuous(experiment)
        weights = simplex.middle(list(experiment.objectives))
    else:
        weights = read_option(args.weights, experiment)

    from modpo.methods.sweep import train_continuous, train_point
    from modpo.pipeline.preflight import check_training
    from modpo.pipeline.stages import prepare

    check_training(experiment, weights, args.output)
    experiment = prepare(experiment)
    if args.continuous:
        train_continuous(experiment, args.output)
    else:
        train_point(experiment, weights, args.output)
    return 0


def read_option(text: str, experiment: Experiment) -> Weights:
    """`positive=0.7,concise=0.3` as a preference vector.

    Raises:
        InputError: not of that form, or no such vector.
    """
    from modpo.experiment.vectors import check_trainable

    weights = read_weights_option(text, list(experiment.objectives))
    named, method = experiment.training.objective, experiment.sweep.method
    check_trainable(weights, experiment.objectives, named, where=OPTION, field="weights", method=method)
    return weights
