"""A scalar reward model from an objective's pairs: the experiment's model with a new head, by trl.RewardTrainer.

The loss is that of Bradley and Terry: -log sigmoid(r(chosen) - r(rejected)). So reward differences are logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.costs import Cost
from modpo.models.folders import lora_config
from modpo.models.reference import ReferenceModel
from modpo.pipeline.sft import save_model
from modpo.rewards.classifier_input import ClassifierInput
from modpo.training.arguments import modest_batches, one_progress_bar, quiet_settings, run_training, training_config

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerBase
    from trl import RewardConfig, RewardTrainer

    from modpo.experiment.sections import LoraSection
    from modpo.pipeline.reward_task import RewardTask

HEAD = "score"  # what transformers calls the head of a language model that classifies


def reward_model_config(task: RewardTask) -> RewardConfig:
    """TRL's defaults, with the experiment's `data.max_length`, and what the reward's `arguments` say otherwise.

    Raises:
        InputError: a name or value that `trl.RewardConfig` refuses.
    """
    from trl import RewardConfig

    experiment = task.experiment
    # When all weights are trained they stay in float32: in 16 bits most steps would be rounded away.
    dtype = experiment.model.dtype if experiment.lora else "float32"
    defaults = {
        **quiet_settings(experiment, task.work),
        **modest_batches(task.training.arguments),
        "max_length": task.section.max_length or experiment.data.max_length,
        "trust_remote_code": experiment.model.trust_remote_code,
        "model_init_kwargs": {"dtype": dtype, "use_safetensors": True, "device_map": None},
    }
    where, field = experiment.where(f"{task.field}.arguments"), f"{task.field}.arguments"
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

    lora = task.experiment.lora
    trainer = RewardTrainer(
        model=str(reference.folder),
        args=config,
        train_dataset=Dataset.from_list(pair_rows(task, reference.tokenizer)),
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
