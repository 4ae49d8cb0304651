"""The commands that take an experiment and nothing else: `inspect`, and the stages one by one.

`modpo sweep` runs all stages by itself.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modpo.base.errors import InputError, Problem

if TYPE_CHECKING:
    from modpo.experiment.sections import Experiment


def add_experiment_arguments(parser: ArgumentParser) -> None:
    """EXPERIMENT, --set, --trust-remote-code."""
    parser.add_argument("experiment", metavar="EXPERIMENT", help="the experiment's YAML file")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change one value of the file, for instance training.beta=0.2; may be repeated",
    )
    add_trust_argument(parser)


def add_trust_argument(parser: ArgumentParser) -> None:
    """--trust-remote-code."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let model repositories run their own Python code on this machine",
    )


def experiment_of(args: Namespace) -> Experiment:
    """The experiment that the arguments name, read and checked."""
    from modpo.experiment.file import read_experiment

    return read_experiment(args.experiment, args.overrides, trust_remote_code=args.trust_remote_code)


@dataclass(frozen=True)
class ExperimentCommand:
    """A subcommand that does one thing with an experiment."""

    HELP: str
    do: Callable[[Experiment], object]

    def add_arguments(self, parser: ArgumentParser) -> None:
        """An experiment."""
        add_experiment_arguments(parser)

    def run(self, args: Namespace) -> int:
        """Do it with the experiment of the arguments."""
        self.do(experiment_of(args))
        return 0


def _inspect(experiment: Experiment) -> None:
    from modpo.inspection.facts import inspect_experiment

    inspect_experiment(experiment)


def _sft(experiment: Experiment) -> None:
    from modpo.pipeline.sft import train_sft

    train_sft(experiment)


def _sample(experiment: Experiment) -> None:
    """Answer with the policy of the experiment's `sft` where there is one."""
    if experiment.sample is None:
        fix = "add `sample: {prompts: prompts.jsonl}` to the file; the answers go to `data.path`"
        raise InputError(Problem(experiment.source, "sample", "there is no such section", fix))

    from modpo.pipeline.stages import prepare
    from modpo.scored.answers import SAMPLE

    prepare(experiment, last=SAMPLE)


def _reward(experiment: Experiment) -> None:
    """Train the rewards and proxies of all objectives that have `train`, after the stages that they build on."""
    objectives = experiment.objectives.values()
    rewards = [reward for objective in objectives for reward in (objective.reward, objective.proxy)]
    if not any(reward.train for reward in rewards if reward is not None):
        fix = "give an objective `reward: {train: {kind: reward_model}}`, or `kind: implicit`"
        raise InputError(Problem(experiment.where("objectives"), "objectives", "none has a reward to train", fix))

    from modpo.pipeline.stages import prepare

    prepare(experiment, proxies=True)


def _score(experiment: Experiment) -> None:
    from modpo.pipeline.preflight import check_experiment
    from modpo.pipeline.stages import prepare
    from modpo.scored.of_experiment import score_experiment

    check_experiment(experiment)
    score_experiment(prepare(experiment))


def _evaluate(experiment: Experiment) -> None:
    """Measure the finished points of the experiment's folder; of a comparison, each sweep is measured as it ends."""
    if experiment.comparison is not None:
        fix = "run `modpo sweep`: it measures the sweep of each method, and what is finished is kept"
        raise InputError(Problem(experiment.where("comparison"), "comparison", "is not measured by itself", fix))

    from modpo.evaluation.evaluate import evaluate_sweep
    from modpo.pipeline.stages import prepare

    evaluate_sweep(prepare(experiment))


inspect = ExperimentCommand("show the data and tokens of an experiment, without training", _inspect)
sft = ExperimentCommand("fine-tune the reference policy on demonstrations", _sft)
sample = ExperimentCommand("answer prompts with the reference policy, as data to train on", _sample)
reward = ExperimentCommand("train the rewards that are learned from pairs", _reward)
score = ExperimentCommand("compute reference log-probs and rewards once, into the cache", _score)
evaluate = ExperimentCommand("measure the reference and the trained policies", _evaluate)
