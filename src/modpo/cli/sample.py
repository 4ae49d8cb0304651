"""`modpo sample`: answers of the reference policy as the data to train on. `modpo sweep` runs it by itself."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from modpo.base.errors import InputError, Problem
from modpo.cli.experiment_arguments import add_experiment_arguments, experiment_of

HELP = "answer prompts with the reference policy, as data to train on"


def add_arguments(parser: ArgumentParser) -> None:
    """An experiment."""
    add_experiment_arguments(parser)


def run(args: Namespace) -> int:
    """Write what the experiment's `sample` section asks for, with the policy of its `sft` where there is one.

    Raises:
        InputError: the experiment has no such section.
    """
    experiment = experiment_of(args)
    if experiment.sample is None:
        fix = "add `sample: {prompts: prompts.jsonl}` to the file; the answers go to `data.path`"
        raise InputError(Problem(experiment.source, "sample", "there is no such section", fix))

    from modpo.pipeline.stages import prepare
    from modpo.scored.answers import SAMPLE

    prepare(experiment, last=SAMPLE)
    return 0
