"""`modpo sft`: the reference policy from demonstrations. `modpo sweep` runs it by itself."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from modpo.cli.experiment_arguments import add_experiment_arguments, experiment_of

HELP = "fine-tune the reference policy on demonstrations"


def add_arguments(parser: ArgumentParser) -> None:
    """An experiment."""
    add_experiment_arguments(parser)


def run(args: Namespace) -> int:
    """Train the model that the experiment's `sft` section describes."""
    experiment = experiment_of(args)

    from modpo.pipeline.sft import train_sft

    train_sft(experiment)
    return 0
