"""The prompts on which policies are measured: no stage may learn from them."""

from __future__ import annotations

from modpo.data.groups import PromptGroups
from modpo.data.loading import load_groups, load_held_out
from modpo.experiment.sections import Experiment
from modpo.pipeline.sample import sample_prompts


def held_out_prompts(experiment: Experiment) -> PromptGroups:
    """The experiment's held-out prompts, also before `modpo sample` has written them.

    Raises:
        InputError: bad rows, or more held-out prompts than there are.
    """
    if experiment.sample is None:
        return load_groups(experiment)[1]
    if not experiment.sample.held_out and experiment.data.eval_path is not None:
        return load_held_out(experiment)
    answered, unanswered = sample_prompts(experiment)
    if len(unanswered):
        return unanswered
    return answered.split_held_out(experiment.data.eval_prompts, experiment.data.split_seed)[1]
