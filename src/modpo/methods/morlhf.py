"""MORLHF: reinforcement learning on the weighted sum of the rewards, one on-policy training for each vector.

    maximise E[sum_i w_i r_i(x, y)] - beta KL(pi || pi_ref)

with each reward r_i calibrated, scaled and signed as in MODPO's margins, so that both methods have the same optimum.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base import simplex
from modpo.base.errors import InputError, Problem
from modpo.base.simplex import Weights
from modpo.data.groups import PromptGroups
from modpo.data.tokens import answer_text, tokenize_prompt
from modpo.experiment.chat_settings import FIELD
from modpo.experiment.primary import active_objectives
from modpo.experiment.sections import Experiment
from modpo.forward.packing_choice import require_fixed_rope
from modpo.methods.point import point_parts, train_policy
from modpo.methods.run import Maker, Run
from modpo.models.folders import lora_config
from modpo.models.positions import require_answerable
from modpo.models.reference import ReferenceModel, answer_ends, answer_turn
from modpo.rewards.batch import answer_batch, check_scores
from modpo.scored.calibration import Calibration

if TYPE_CHECKING:
    from trl import GRPOConfig, RLOOConfig

    from modpo.training.on_policy import OnPolicy

PROMPT = "prompt_index"  # column of the prompts' data set: which prompt group a row is

# Fields under which another objective would be maximised, or answers were not the policy's own.
PINNED: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "generation_kwargs": None,
    "mask_truncated_completions": False,
    "sync_ref_model": False,
}
PINNED_BY_ALGORITHM: dict[str, dict[str, Any]] = {
    "rloo": {"normalize_advantages": False, "reward_clip_range": None},
    "grpo": {
        "multi_objective_aggregation": "sum_then_normalize",
        "scale_rewards": "none",
        "loss_type": "dr_grpo",  # the others weigh an answer's tokens by how many there are
    },
}
# Fields that the configuration shares with the section, and with `training`.
OF_MORLHF = ("learning_rate", "max_steps", "num_generations", "per_device_train_batch_size", "max_completion_length")
FROM_TRAINING = ("beta", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "logging_steps")


def maker(run: Run) -> Maker:
    """Nothing is shared but the scores, on which rewards are calibrated."""
    return partial(train, run)


def check_settings(experiment: Experiment, weights: Weights) -> None:
    """Check that the trainer takes its settings.

    Raises:
        InputError: it does not.
    """
    training_arguments(experiment, weights, experiment.output_dir)
    new = max_completion_length(experiment)
    longest = experiment.data.prompt_room(new) + new
    reference = ReferenceModel.of(experiment, writes=False)
    require_fixed_rope(reference, longest, experiment.where("data"), "data.max_length")


def train(run: Run, weights: Weights, folder: Path) -> None:
    """Train one vector, from its newest checkpoint if there is one; kept where it is finished."""
    section = asdict(run.experiment.morlhf) | {"max_completion_length": max_completion_length(run.experiment)}
    parts = {**point_parts(run, weights), "morlhf": section}
    make = partial(new_trainer, run, weights)
    try:
        train_policy(run, folder, parts, simplex.name(weights), make, about={"weights": weights})
    finally:
        for reward in run.rewards.values():
            reward.release()


def new_trainer(run: Run, weights: Weights, work: Path) -> OnPolicy:
    """A trainer that has not trained yet."""
    from datasets import Dataset
    from transformers import PrinterCallback

    from modpo.training.callbacks import FiniteGradients
    from modpo.training.on_policy import OnPolicyGRPO, OnPolicyRLOO, Reading

    experiment, prompts = run.experiment, run.prompts
    require_room(experiment, run.reference, prompts)
    arguments = training_arguments(experiment, weights, work)
    _require_prompts(experiment, arguments, len(prompts))
    room = experiment.data.prompt_room(max_completion_length(experiment))
    trainer = (OnPolicyRLOO if experiment.morlhf.algorithm == "rloo" else OnPolicyGRPO)(
        run.reference.model,
        reward_funcs=reward_functions(run, weights),
        args=arguments,
        train_dataset=Dataset.from_list(_rows(prompts)),
        processing_class=run.reference.tokenizer,
        peft_config=lora_config(experiment.lora) if experiment.lora else None,
        callbacks=[FiniteGradients()],
        reading=Reading(room, answer_ends(run.reference, prompts), experiment.training.packs),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _rows(prompts: PromptGroups) -> list[dict[str, Any]]:
    return [
        {"prompt": group.prompt, PROMPT: i, FIELD: json.dumps(group.template_kwargs)} for i, group in enumerate(prompts)
    ]


def reward_functions(run: Run, weights: Weights) -> list[Callable[..., list[float | None]]]:
    """TRL's reward functions, one for each objective with a weight, in the order of `reward_weights`."""
    functions = []
    for name in active_objectives(weights):
        sign, calibration = run.experiment.objectives[name].sign, run.scored.calibrations[name]
        functions.append(_reward_function(name, run, calibration, sign))
    return functions


def _reward_function(name: str, run: Run, calibration: Calibration, sign: float) -> Callable[..., list[float | None]]:
    reward, prompts, tokenizer = run.rewards[name], run.prompts, run.reference.tokenizer
    ends, turn = answer_ends(run.reference, prompts), answer_turn(run.reference, prompts)

    def function(completion_ids: Sequence[list[int]], **columns: Sequence[Any]) -> list[float | None]:
        """The margin reward of each answer, read as in measuring."""
        texts = [answer_text(ids, ends, tokenizer, turn) for ids in completion_ids]
        batch = answer_batch([prompts[i] for i in columns[PROMPT]], texts)
        scores = check_scores(reward(batch), batch, field=name)
        return [calibration.apply(raw, sign) for raw in scores]

    function.__name__ = name  # what TRL's logs call it
    return function


def training_arguments(experiment: Experiment, weights: Weights, work: Path) -> RLOOConfig | GRPOConfig:
    """The experiment's `morlhf` section as TRL's configuration; what it leaves open is as in `training`.

    Raises:
        InputError: `morlhf.arguments` names what has a place of its own, or what the configuration refuses.
    """
    from trl import GRPOConfig, RLOOConfig

    from modpo.training.arguments import ELSEWHERE, quiet_settings, training_config

    section, training = experiment.morlhf, experiment.training
    pinned = PINNED | PINNED_BY_ALGORITHM[section.algorithm]
    _require_pinned(section.arguments, pinned, experiment.where("morlhf.arguments"))
    settings = {
        **quiet_settings(experiment, work),
        **{name: getattr(training, name) for name in FROM_TRAINING},
        **pinned,
        **{name: getattr(section, name) for name in OF_MORLHF},
        "max_completion_length": max_completion_length(experiment),
        "reward_weights": [weights[name] for name in active_objectives(weights)],
        "disable_dropout": True,
    }
    elsewhere = ELSEWHERE | {"beta": "training.beta", "reward_weights": "sweep.weights"}
    elsewhere |= {name: f"morlhf.{name}" for name in OF_MORLHF}
    kind: Any = RLOOConfig if section.algorithm == "rloo" else GRPOConfig
    return training_config(
        kind, settings, section.arguments, where=experiment.where, field="morlhf.arguments", elsewhere=elsewhere
    )


def _require_pinned(arguments: Mapping[str, Any], pinned: Mapping[str, Any], where: str) -> None:
    fix = "leave it out: with another value something else than the weighted sum of the rewards would be maximised"
    problems = [
        Problem(where, f"morlhf.arguments.{name}", f"is {value!r}, and must stay {pinned[name]!r}", fix)
        for name, value in arguments.items()
        if name in pinned and value != pinned[name]
    ]
    if problems:
        raise InputError(problems)


def _require_prompts(experiment: Experiment, arguments: RLOOConfig | GRPOConfig, prompts: int) -> None:
    """TRL leaves out a batch that is not full, so there must be one that is."""
    needed = arguments.generation_batch_size // arguments.num_generations
    if prompts < needed:
        problem = f"a step takes {needed} prompts, and there are {prompts} to train on"
        fix = "lower `morlhf.per_device_train_batch_size`, or raise `morlhf.num_generations`"
        where = experiment.where("morlhf")
        raise InputError(Problem(where, "morlhf.per_device_train_batch_size", problem, fix))


def require_room(experiment: Experiment, reference: ReferenceModel, prompts: PromptGroups) -> None:
    """Refuse answers that could be longer, with their prompt, than the model has positions.

    Raises:
        InputError: they could.
    """
    tokens, positions = max_completion_length(experiment), reference.positions
    room = experiment.data.prompt_room(tokens)
    if positions is not None and room + tokens > positions:
        own = experiment.morlhf.max_completion_length is not None
        field = "morlhf.max_completion_length" if own else "evaluation.max_new_tokens"
        ids = (tokenize_prompt(g.prompt, reference.tokenizer, g.template_kwargs, longest=room) for g in prompts)
        require_answerable(prompts, ids, positions, tokens, experiment.where(field), field)


def max_completion_length(experiment: Experiment) -> int:
    """Tokens of an answer: as in evaluation, if nothing else is set."""
    return experiment.morlhf.max_completion_length or experiment.evaluation.max_new_tokens
