"""What is wrong with an experiment, found before a weight is read and before anything is written.

What stages before the sweep are still to make is left to them: answers to train on, rewards to be trained.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from modpo.base.errors import EnvironmentFault, InputError, Problem
from modpo.base.progress import say
from modpo.base.simplex import Weights
from modpo.data.groups import PromptGroups
from modpo.data.loading import check_layouts, load_groups
from modpo.data.tokens import require_usable, tokenize_groups
from modpo.experiment.sections import Experiment, resolved
from modpo.forward.packing_choice import with_packing
from modpo.models.adapters import add_adapters
from modpo.models.dtype_choice import require_device_dtype, unmeasured
from modpo.models.folders import read_object, skeleton, tensor_shapes
from modpo.models.positions import LOWER_MAX_LENGTH, longest_of, place_in, require_readable
from modpo.models.reference import ReferenceModel
from modpo.pipeline.sample import require_room, sample_prompts
from modpo.rewards.batch import Reward, RewardContext, reward_batch
from modpo.rewards.loading import PROBE_ROWS, probe, quick_rewards
from modpo.scored.equal_tokens import EqualTokens
from modpo.scored.lists import longest_with_response
from modpo.scored.of_experiment import load_proxies, load_ready_rewards
from modpo.scored.scorer import tokens_column

MOST_GROUPS = 2000  # prompt groups that are tokenized here; the rest is found out when it is scored


def check_training(experiment: Experiment, weights: Weights, output: Path | None = None) -> None:
    """Check what training one vector needs; other vectors need the same.

    Args:
        output: where the policy goes, if not to its place in the sweep's folder.

    Raises:
        InputError, NumericError: see `check_experiment`; settings that the trainer refuses, adapters that do not fit.
        EnvironmentFault: a folder that cannot be written. IntegrityError: it holds another experiment.
    """
    from modpo.methods.modpo import training_arguments
    from modpo.methods.run import check_settings
    from modpo.methods.sweep import require_same_experiment

    require_writable(output or experiment.output_dir, "output" if output else "output_dir")
    if output is None:
        require_same_experiment(resolved(experiment).asked)
    check_experiment(experiment)
    _check_adapters(experiment)
    settled = unmeasured(experiment)
    training_arguments(settled, weights, experiment.output_dir)
    check_settings(settled, weights)


def check_experiment(experiment: Experiment) -> None:
    """Check data, model, tokens and rewards, in the order of what it costs. Says what a user should know of them.

    Raises:
        InputError: bad rows; a model or reward that cannot be had or used; texts that cannot be tokenized; packing that
            the model's configuration rules out.
        NumericError: a reward that is not finite. EnvironmentFault: see `require_writable`; a dtype the device lacks.
    """
    require_writable(experiment.cache_dir, "cache_dir")
    check_layouts(experiment)
    groups = None if experiment.sample is not None else load_groups(experiment)[0]
    require_device_dtype(experiment)
    reference = ReferenceModel.of(experiment, writes=False)
    tensor_shapes(sorted(reference.folder.glob("*.safetensors")), reference.where, reference.field)  # whole files
    if experiment.training.packing is True:
        with_packing(experiment, reference)
    tokenizer = reference.tokenizer
    if groups is not None:
        kwargs = groups.template_kwargs
        require_usable(tokenizer, conversational=groups.conversational, where=reference.where, template_kwargs=kwargs)
        _check_tokens(experiment, groups, reference)
    _require_room(experiment, reference, groups)
    rewards = load_ready_rewards(experiment)
    load_proxies(experiment)
    if groups is not None:
        _probe(experiment, groups, rewards)
        _warn(experiment, groups)


def _check_tokens(experiment: Experiment, groups: PromptGroups, reference: ReferenceModel) -> None:
    """Tokenize the first groups; of many that are in the cache, look at how long all of them are."""
    data, tokenizer = experiment.data, reference.tokenizer
    if len(groups) > MOST_GROUPS:
        kept = tokens_column(groups, tokenizer, RewardContext.of(experiment))
        if kept.complete:
            ids = map(kept.table().column, ("prompt_ids", "responses_ids"))
            require_readable(
                place_in(groups), longest_with_response(*ids).tolist(), reference.positions, LOWER_MAX_LENGTH
            )
            return
    tokens = tokenize_groups(
        groups[:MOST_GROUPS], tokenizer, max_length=data.max_length, max_prompt_length=data.max_prompt_length
    )
    require_readable(place_in(groups), map(longest_of, tokens), reference.positions, LOWER_MAX_LENGTH)
    if len(groups) <= MOST_GROUPS:
        EqualTokens.of_tokenized(groups, tokens, experiment.label_sets).refuse(tokenizer, data.max_length)


def _require_room(experiment: Experiment, reference: ReferenceModel, groups: PromptGroups | None) -> None:
    """Refuse answers to the prompts of training that could be longer, with their prompt, than the model's positions.

    Args:
        groups: None where they are to be sampled.
    """
    from modpo.methods import morlhf

    prompts = (sample_prompts(experiment)[0] if groups is None else groups)[:MOST_GROUPS]
    if groups is None:
        require_room(experiment, reference, prompts)
    if experiment.method.module == "morlhf":
        morlhf.require_room(experiment, reference, prompts)


def require_writable(folder: Path, field: str) -> None:
    """Refuse a folder that cannot be made, or in which nothing can be written.

    Raises:
        EnvironmentFault: naming what stands in the way.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(folder)  # says what is wrong with a name that no system takes
    there = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), Path("/"))
    if not there.is_dir():
        raise EnvironmentFault(f"{there}: is no folder; fix: choose another `{field}`")
    if not os.access(there, os.W_OK | os.X_OK):
        raise EnvironmentFault(f"{there}: may not be written; fix: change its permissions, or choose another `{field}`")


def _probe(experiment: Experiment, groups: PromptGroups, rewards: Mapping[str, Reward]) -> None:
    """Score a few responses by each reward that reads no model."""
    batch = reward_batch(groups, range(min(PROBE_ROWS, len(groups))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scoring probes again, and says what it thinks of it
        for reward in quick_rewards(experiment.objectives, rewards).values():
            probe(reward, batch)


def _check_adapters(experiment: Experiment) -> None:
    """Put adapters on the model's skeleton: some settings fit no module of it. Without, its weights must be whole."""
    reference = ReferenceModel.of(experiment, writes=False)
    if experiment.lora is None:
        _require_whole_weights(experiment, reference)
        return
    from transformers import AutoModelForCausalLM

    trust = experiment.model.trust_remote_code
    outline = skeleton(
        AutoModelForCausalLM, reference.folder, reference.where, reference.field, trust_remote_code=trust
    )
    add_adapters(outline, experiment.lora, experiment.where("lora.target_modules"))


def _require_whole_weights(experiment: Experiment, reference: ReferenceModel) -> None:
    """Refuse to train all weights of a model that is quantised, and warn of number formats of 16 bits."""
    if experiment.sweep.method == "best_of_n":
        return
    if "quantization_config" in read_object(reference.folder / "config.json", reference.where, reference.field):
        problem = f"is null, but the weights of {reference.folder} are quantised, which cannot be trained"
        raise InputError(Problem(experiment.where("lora"), "lora", problem, "give `lora` its fields back"))
    if experiment.model.dtype != "float32":
        problem = f"all weights are trained in {experiment.model.dtype}, where small steps are rounded away"
        say(f"warning: {experiment.where('model.dtype')}:model.dtype: {problem}; fix: leave it out, for float32")


def _warn(experiment: Experiment, groups: PromptGroups) -> None:
    """What is no error, and should not go unnoticed. What became of the texts is said where they are scored."""
    batch = experiment.training.per_device_train_batch_size
    if len(groups) < batch:
        what = f"{len(groups)} prompts to train on are fewer than one batch of {batch}"
        say(f"warning: {experiment.data.path}: {what}; fix: lower `training.per_device_train_batch_size`")
