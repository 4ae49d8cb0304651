"""`modpo train`: one preference vector, one policy."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from modpo.cli.experiment_arguments import add_experiment_arguments, experiment_of
from modpo.errors import InputError, Problem

if TYPE_CHECKING:
    from modpo.experiment.sections import Experiment
    from modpo.simplex import Weights

HELP = "train one policy, for one preference vector"
OPTION = "--weights"


def add_arguments(parser: ArgumentParser) -> None:
    """An experiment, --weights, --output."""
    add_experiment_arguments(parser)
    parser.add_argument(OPTION, required=True, metavar="NAME=W,NAME=W", help="for instance positive=0.7,concise=0.3")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where the policy goes; default: its place in the sweep's folder, output_dir/points/<name>",
    )


def run(args: Namespace) -> int:
    """Train the policy of one vector."""
    experiment = experiment_of(args)
    weights = read_option(args.weights, experiment)

    from modpo.preflight import check_training
    from modpo.stages.pipeline import prepare
    from modpo.sweep import train_point

    check_training(experiment, weights, args.output)
    train_point(prepare(experiment), weights, args.output)
    return 0


def read_option(text: str, experiment: Experiment) -> Weights:
    """`positive=0.7,concise=0.3` as a preference vector.

    Raises:
        InputError: not of that form, or no such vector.
    """
    from modpo import simplex
    from modpo.experiment.vectors import check_trainable

    names = list(experiment.objectives)
    weights = simplex.read_weights(_pieces(text, names), names, where=OPTION)
    named, method = experiment.training.objective, experiment.sweep.method
    check_trainable(weights, experiment.objectives, named, where=OPTION, field="weights", method=method)
    return weights


def _pieces(text: str, names: list[str]) -> dict[str, float | str]:
    """The names and numbers; what is no number stays text, for `read_weights` to name."""
    example = "write " + ",".join(f"{name}={1 / len(names):.3g}" for name in names)
    given: dict[str, float | str] = {}
    name = ""
    for piece in text.split(","):
        before, equals, number = (part.strip() for part in piece.partition("="))
        if not equals and name and before.isdigit():  # positive=0,7 was split at its decimal comma
            given[name] = f"{given[name]},{before}"
            continue
        name = before
        if not equals or not name:
            raise InputError(Problem(OPTION, "weights", f"{piece!r} is not NAME=WEIGHT", example))
        if name in given:
            raise InputError(Problem(OPTION, f"weights.{name}", "is given twice", "give it once"))
        given[name] = number
    return {name: _number(value) for name, value in given.items()}


def _number(value: float | str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
