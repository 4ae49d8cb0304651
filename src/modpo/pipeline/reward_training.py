"""How a reward is trained on an objective's pairs: as a scalar model, or as a policy whose log-ratio it is.

`reward_model`: the experiment's model with a new head, by trl.RewardTrainer. The loss is that of Bradley and Terry,
-log sigmoid(r(chosen) - r(rejected)), so reward differences are logits.

`implicit`: a policy trained by DPO, which is MODPO at w = e_j. Its reward is beta log(pi(y|x) / pi_ref(y|x)). Rafailov
et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", NeurIPS 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.costs import Cost
from modpo.base.files import write_json
from modpo.data.clock import save_tokenizer
from modpo.data.groups import PromptGroups
from modpo.experiment.objectives import RewardSection, RewardTraining
from modpo.experiment.sections import Experiment
from modpo.models.folders import TRAINING_LOG, lora_config
from modpo.models.positions import LOWER_MAX_LENGTH, require_readable
from modpo.models.reference import ReferenceModel
from modpo.pipeline.sft import save_model
from modpo.rewards.accuracy import reward_folder
from modpo.rewards.classifier_input import ClassifierInput
from modpo.scored.of_experiment import experiment_scorer
from modpo.training.arguments import (
    ELSEWHERE,
    modest_batches,
    modpo_settings,
    one_progress_bar,
    quiet_settings,
    run_training,
    training_config,
)

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase
    from trl import RewardConfig, RewardTrainer

    from modpo.experiment.sections import LoraSection
    from modpo.training.config import MODPOConfig

HEAD = "score"  # what transformers calls the head of a language model that classifies

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


@dataclass(frozen=True)
class RewardTask:
    """What one reward is to learn, and where it goes."""

    experiment: Experiment
    name: str  # the objective
    role: str  # REWARD | PROXY
    section: RewardSection
    training: RewardTraining  # of the section
    label_set: str
    learned: PromptGroups  # each with pairs of the label set
    held_out: PromptGroups

    @property
    def folder(self) -> Path:
        """Where the result lies."""
        return reward_folder(self.experiment, self.name)

    @property
    def work(self) -> Path:
        """Where the trainer may write meanwhile."""
        return self.folder.with_name(f".work-{self.name}")

    @property
    def label(self) -> str:
        """What the console calls it."""
        return f"{self.role} {self.name}"

    @property
    def field(self) -> str:
        """Its place in the experiment."""
        return f"objectives.{self.name}.{self.role}.train"


# --- a scalar model -----------------------------------------------------------------------------------------


def reward_model_config(task: RewardTask) -> RewardConfig:
    """TRL's defaults, with the experiment's `data.max_length`, and what the reward's `arguments` say otherwise.

    Raises:
        InputError: a name or value that `trl.RewardConfig` refuses.
    """
    from trl import RewardConfig

    experiment = task.experiment
    # When all weights are trained they stay in float32: in 16 bits most steps would be rounded away.
    dtype = experiment.model.number_format if experiment.lora else "float32"
    defaults = {
        **quiet_settings(experiment, task.work),
        **modest_batches(task.training.arguments),
        "max_length": task.section.max_length or experiment.data.max_length,
        "trust_remote_code": experiment.model.trust_remote_code,
        "model_init_kwargs": {"dtype": dtype, "use_safetensors": True, "device_map": None},
    }
    where, field = experiment.where, f"{task.field}.arguments"
    return training_config(RewardConfig, defaults, task.training.arguments, where=where, field=field)


def train_reward_model(task: RewardTask, config: RewardConfig, reference: ReferenceModel, folder: Path) -> Cost:
    """Train the model into `folder`, adapters merged, with its tokenizer.

    Returns:
        What it cost, see `run_training`.
    """
    tokenizer = reference.tokenizer
    if config.max_length is not None:
        tokenizer.model_max_length = config.max_length  # the length that it will be read with
    with one_progress_bar():
        trainer = _trainer(task, config, reference)
        cost = run_training(trainer, task.label)
    save_model(trainer, task.experiment, tokenizer, folder)
    return cost


def _trainer(task: RewardTask, config: RewardConfig, reference: ReferenceModel) -> RewardTrainer:
    from datasets import Dataset
    from trl import RewardTrainer

    from modpo.training.callbacks import CountPasses, FiniteGradients

    lora, rows = task.experiment.lora, pair_rows(task, reference.tokenizer)
    lengths = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    where = task.experiment.where(task.field)
    require_readable(lambda _: f"{where}:{task.field}", lengths, reference.positions, LOWER_MAX_LENGTH)
    trainer = RewardTrainer(
        model=str(reference.folder),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=reference.tokenizer,
        peft_config=classifier_lora_config(lora) if lora else None,
        callbacks=[FiniteGradients(), CountPasses()],
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # PEFT leaves the head in the model's 16 bits
            parameter.data = parameter.data.float()
    return trainer


def pair_rows(task: RewardTask, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """{chosen_ids, rejected_ids} of every pair, tokenized as the reward will be when it scores."""
    reading = ClassifierInput(tokenizer, int(tokenizer.model_max_length))
    rows = []
    for group in task.learned:
        ids = [reading.encode(group.prompt, response, group.where).input_ids for response in group.responses]
        pairs = group.pairs[task.label_set]
        rows += [{"chosen_ids": ids[chosen], "rejected_ids": ids[rejected]} for chosen, rejected in pairs]
    return rows


def classifier_lora_config(section: LoraSection) -> LoraConfig:
    """The experiment's adapters for a classifier, whose new head is trained whole."""
    config = lora_config(section)
    config.task_type = "SEQ_CLS"
    config.modules_to_save = [*(section.modules_to_save or []), HEAD]
    return config


# --- an implicit reward -------------------------------------------------------------------------------------


def implicit_config(task: RewardTask) -> MODPOConfig:
    """The experiment's `training`, and what the reward's `arguments` say otherwise.

    Raises:
        InputError: a name or value that `MODPOConfig` refuses.
    """
    from modpo.training.config import MODPOConfig

    experiment = task.experiment
    defaults = {
        **modpo_settings(experiment, task.work),
        **experiment.training.arguments,
        "objective": None,
        "weights": {task.name: 1.0},
    }
    where, field = experiment.where, f"{task.field}.arguments"
    return training_config(MODPOConfig, defaults, task.training.arguments, where=where, field=field, elsewhere=FIXED)


def train_implicit_reward(task: RewardTask, config: MODPOConfig, reference: ReferenceModel, folder: Path) -> Cost:
    """Train the policy into `folder`: an adapter as PEFT saves it, or a model when all weights are trained.

    Returns:
        What it took, its scored data included; see `run_training`.
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
        save_tokenizer(reference.tokenizer, folder)
    write_json(folder / TRAINING_LOG, trainer.state.log_history)
    return cost
