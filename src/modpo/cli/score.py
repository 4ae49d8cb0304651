"""`modpo score`: everything that does not change while training, computed once."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from modpo.cli.experiment_arguments import add_experiment_arguments, experiment_of

HELP = "compute reference log-probs and rewards once, into the cache"


def add_arguments(parser: ArgumentParser) -> None:
    """An experiment."""
    add_experiment_arguments(parser)


def run(args: Namespace) -> int:
    """Fill the scored cache."""
    experiment = experiment_of(args)

    from modpo.pipeline.preflight import check_experiment
    from modpo.pipeline.stages import prepare
    from modpo.scored.scorer import score_experiment

    check_experiment(experiment)
    score_experiment(prepare(experiment))
    return 0
