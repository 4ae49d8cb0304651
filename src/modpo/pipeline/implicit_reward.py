"""An implicit reward: a policy trained by DPO on an objective's pairs, MODPO at w = e_j.

Its reward is beta log(pi(y|x) / pi_ref(y|x)). Rafailov et al., "Direct Preference Optimization: Your Language Model is
Secretly a Reward Model", NeurIPS 2023.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from modpo.base.costs import Cost
from modpo.base.files import write_json
from modpo.models.folders import TRAINING_LOG, lora_config
from modpo.models.reference import ReferenceModel
from modpo.scored.scorer import experiment_scorer
from modpo.training.arguments import ELSEWHERE, modpo_settings, run_training, training_config
from modpo.training.config import MODPOConfig

if TYPE_CHECKING:
    from modpo.pipeline.reward_task import RewardTask

# The reward reads its data as training does, so lengths and packing are the experiment's.
FIXED = {
    **ELSEWHERE,
    "max_length": "data.max_length",
    "max_prompt_length": "data.max_prompt_length",
    "packing": "training.packing",
    "weights": "objectives",
    "objective": "objectives",
    "cache_dir": "cache_dir",
}


def implicit_config(task: RewardTask) -> MODPOConfig:
    """The experiment's `training`, and what the reward's `arguments` say otherwise.

    Raises:
        InputError: a name or value that `MODPOConfig` refuses.
    """
    experiment = task.experiment
    defaults = {
        **modpo_settings(experiment, task.work),
        **experiment.training.arguments,
        "objective": None,
        "weights": {task.name: 1.0},
    }
    where, field = experiment.where(f"{task.field}.arguments"), f"{task.field}.arguments"
    return training_config(MODPOConfig, defaults, task.training.arguments, where=where, field=field, elsewhere=FIXED)


def train_implicit_reward(task: RewardTask, config: MODPOConfig, reference: ReferenceModel, folder: Path) -> Cost:
    """Train the policy into `folder`: an adapter as PEFT saves it, or a model when all weights are trained.

    Returns:
        Its cost, the scored data included; see `run_training`.
    """
    from modpo.training.trainer import MODPOTrainer

    experiment = task.experiment
    scorer = experiment_scorer(replace(experiment, objectives={}), reference)
    scored = replace(scorer, label_sets={task.name: task.label_set}).score(task.learned)
    trainer = MODPOTrainer(
        reference.model,
        args=config,
        train_dataset=scored.dataset(),
        processing_class=reference.tokenizer,
        peft_config=lora_config(experiment.lora) if experiment.lora else None,
    )
    cost = sum((cost for cost in scored.costs().values() if cost), run_training(trainer, task.label))
    trainer.model.save_pretrained(folder)
    if experiment.lora is None:
        reference.tokenizer.save_pretrained(folder)
    write_json(folder / TRAINING_LOG, trainer.state.log_history)
    return cost
