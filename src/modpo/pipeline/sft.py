"""The reference policy from demonstrations: supervised fine-tuning by trl.SFTTrainer.

`<output>/sft/` is a full model with its tokenizer, `training_log.json` and a manifest.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.artifact import Artifact
from modpo.base.errors import InputError, Problem
from modpo.base.files import locked, remove_unfinished, write_json
from modpo.base.progress import duration, say
from modpo.data.clock import save_tokenizer
from modpo.data.tokens import identity as tokenizer_identity
from modpo.data.tokens import require_usable
from modpo.experiment.sections import Experiment
from modpo.forward.packing_choice import require_fixed_rope
from modpo.models.adapters import merged_adapters
from modpo.models.dtype_choice import with_dtype
from modpo.models.folders import TRAINING_LOG, lora_config
from modpo.models.positions import LOWER_MAX_LENGTH, require_readable
from modpo.models.reference import ReferenceModel
from modpo.pipeline.demonstrations import Demonstrations, load_demonstrations
from modpo.pipeline.sample import held_out_prompts
from modpo.training.arguments import (
    modest_batches,
    one_progress_bar,
    quiet_settings,
    require_finite,
    run_training,
    training_config,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer
    from trl import SFTConfig, SFTTrainer

LABEL = "sft"
# With adapters, ten times TRL's default, which is for training all weights.
ADAPTER_LEARNING_RATE = 2e-4


def train_sft(experiment: Experiment) -> Path:
    """Fine-tune the experiment's model on its demonstrations; kept when it is there already.

    Adapters are merged into the model. Demonstrations of the prompts on which policies are measured are left out.
    The manifest has `demonstrations` (how many), `cost`, and `held_out_loss` (nats per token) if some are held out.

    Returns:
        `<output_dir>/sft`, which `ReferenceModel` reads.

    Raises:
        InputError: no `sft` section, bad demonstrations or settings, before any model is loaded.
        IntegrityError: the folder holds a model of other data or settings. NumericError: a number is not finite.
    """
    section = experiment.sft
    if section is None:
        fix = "add `sft: {path: demonstrations.jsonl}`"
        raise InputError(Problem(experiment.source, "sft", "there is no such section", fix))
    experiment = with_dtype(experiment)
    folder = experiment.output_dir / "sft"
    config = _config(experiment, section.arguments, folder.with_name(".work-sft"))
    never, seed = held_out_prompts(experiment), experiment.data.split_seed
    skip, kwargs = experiment.data.skip_empty, experiment.data.chat_template_kwargs
    data = load_demonstrations(section, never=never, seed=seed, skip_empty=skip, template_kwargs=kwargs)
    reference = ReferenceModel.of(experiment)
    require_usable(
        reference.tokenizer,
        conversational=data.conversational,
        where=reference.where,
        template_kwargs=kwargs if data.conversational else None,  # it is for the preferences then
    )
    require_fixed_rope(reference, experiment.data.max_length, experiment.where("data"), "data.max_length")
    decisive = {  # of the weights
        "data": data.fingerprint,
        "model": reference.fingerprint,
        "tokenizer": tokenizer_identity(reference.tokenizer, experiment.data.max_length, None),
        "lora": asdict(experiment.lora) if experiment.lora else None,
        "arguments": section.arguments,
        "seed": experiment.seed,
    }
    model = Artifact(folder, decisive, LABEL, guarded=True)
    if model.there() is None:
        with locked(experiment.output_dir):
            remove_unfinished(experiment.output_dir)
            _train(experiment, reference, config, data, model)
    return folder


def _config(experiment: Experiment, asked: dict[str, Any], work: Path) -> SFTConfig:
    from trl import SFTConfig

    defaults = {**quiet_settings(experiment, work), **modest_batches(asked), "max_length": experiment.data.max_length}
    if experiment.lora is not None:
        defaults["learning_rate"] = ADAPTER_LEARNING_RATE
    return training_config(SFTConfig, defaults, asked, where=experiment.where, field="sft.arguments")


def _train(
    experiment: Experiment, reference: ReferenceModel, config: SFTConfig, data: Demonstrations, model: Artifact
) -> None:
    try:
        with model.making(demonstrations=len(data.learned)) as new, one_progress_bar():
            trainer = _trainer(experiment, reference, config, data)
            cost = run_training(trainer, LABEL)
            new.about["cost"] = cost.written()
            summary = f"{LABEL}: trained in {duration(cost.seconds)}"
            if data.held_out:
                new.about["held_out_loss"] = loss = trainer.evaluate()["eval_loss"]
                require_finite(loss, f"{LABEL}: the held-out loss")
                summary += f", {loss:.3f} nats per token on {len(data.held_out)} held-out demonstrations"
            save_model(trainer, experiment, reference.tokenizer, new.folder)
    finally:
        shutil.rmtree(config.output_dir, ignore_errors=True)
    say(summary)


def _trainer(experiment: Experiment, reference: ReferenceModel, config: SFTConfig, data: Demonstrations) -> SFTTrainer:
    from datasets import Dataset
    from trl import SFTTrainer

    from modpo.training.callbacks import CountPasses, FiniteGradients

    # When all weights are trained they stay in float32: in 16 bits most steps would be rounded away.
    model = reference.model if experiment.lora else reference.model.float()
    trainer = SFTTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_list(data.learned),
        eval_dataset=Dataset.from_list(data.held_out) if data.held_out else None,
        processing_class=reference.tokenizer,
        peft_config=lora_config(experiment.lora) if experiment.lora else None,
        callbacks=[FiniteGradients(), CountPasses()],
    )
    _say_what_was_left_out(data, trainer, config)
    lengths = map(len, trainer.train_dataset["input_ids"])
    require_readable(
        lambda _: str(experiment.sft and experiment.sft.path), lengths, reference.positions, LOWER_MAX_LENGTH
    )
    return trainer


def _say_what_was_left_out(data: Demonstrations, trainer: SFTTrainer, config: SFTConfig) -> None:
    """TRL drops a demonstration whose prompt leaves no room for its answer."""
    if config.packing:
        return
    kept = len(trainer.train_dataset) + len(trainer.eval_dataset or [])
    if lost := len(data.learned) + len(data.held_out) - kept:
        problem = f"the prompts of {lost} demonstrations leave no room for an answer in {config.max_length} tokens"
        say(f"warning: {problem}: they are left out; fix: raise `data.max_length`")


def save_model(trainer: Trainer, experiment: Experiment, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a model that was trained, adapters merged, in the experiment's number format; its tokenizer and log too."""
    import torch

    model = merged_adapters(trainer.model) if experiment.lora else trainer.model
    model.to(getattr(torch, experiment.model.number_format)).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    write_json(folder / TRAINING_LOG, trainer.state.log_history)
