"""Where training starts: what is read packed, what is read padded, and whose fault a difference at step 0 is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import (
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from modpo.base.errors import InputError
from modpo.experiment.sections import Objective
from modpo.forward.low_rank import causal_lm
from modpo.scored.of_rows import score_dataset
from modpo.training.config import MODPOConfig
from modpo.training.start import adds_nothing
from modpo.training.trainer import MODPOTrainer
from tests.training.runs import LORA, log_column, logps_of, moved_weights, preference_rows

WEIGHTS = {"better": 0.6, "short": 0.4}
VIRTUAL: list[PeftConfig] = [
    PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
]
virtual = pytest.mark.parametrize("adapter", VIRTUAL, ids=lambda adapter: adapter.peft_type.value)


@pytest.fixture
def config(tmp_path: Path, plain_descent: dict[str, Any]) -> Callable[..., MODPOConfig]:
    def make(**settings: Any) -> MODPOConfig:
        folders = {"output_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")}
        return MODPOConfig(**(plain_descent | folders | {"weights": WEIGHTS} | settings))

    return make


@pytest.fixture(scope="module")
def scored(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return score_dataset(
        preference_rows(),
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        tokenizer=AutoTokenizer.from_pretrained(tiny_model),
        objectives={"better": Objective("better"), "short": Objective("short")},
        label_sets={"better": "data"},
        max_length=1024,
        cache_dir=tmp_path_factory.mktemp("cache"),
    )


def trainer_of(
    tiny_model: Path,
    args: MODPOConfig,
    rows: Dataset,
    adapter: PeftConfig | None = None,
    model: PreTrainedModel | None = None,
) -> MODPOTrainer:
    return MODPOTrainer(
        model if model is not None else AutoModelForCausalLM.from_pretrained(tiny_model),
        args=args,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
        peft_config=adapter,
    )


def wrong(scored: Dataset) -> Dataset:
    """The same data, as if another model had scored it."""
    return scored.map(lambda row: {"ref_logps": [logp * 1.5 for logp in row["ref_logps"]]})


# --- packed or padded -------------------------------------------------------------------------------------------


def test_arguments_stay_as_they_were_given(tiny_model: Path, config, scored: Dataset):
    """They may be given to the next trainer, with another model."""
    args = config()
    assert trainer_of(tiny_model, args, scored, LoraConfig(**LORA)).args.packing is True
    assert args.packing == "auto"
    sliding = AutoModelForCausalLM.from_pretrained(tiny_model)
    sliding.config.sliding_window = 8
    assert trainer_of(tiny_model, args, scored, LoraConfig(**LORA), sliding).args.packing is False


def test_a_reference_of_its_own_decides_too(tiny_model: Path, config, tmp_path: Path):
    """Policy and reference are read in one way: padded, where one of them cannot be packed."""
    sliding = AutoModelForCausalLM.from_pretrained(tiny_model)
    sliding.config.sliding_window = 8
    same = {"train_dataset": preference_rows(), "processing_class": AutoTokenizer.from_pretrained(tiny_model)}
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert MODPOTrainer(model, sliding, args=config(), **same).args.packing is False
    with pytest.raises(InputError, match="slides over a window of 8 tokens; fix: set `packing: false`"):
        MODPOTrainer(model, sliding, args=config(packing=True), **same)


@virtual
def test_virtual_tokens_are_trained_padded(adapter: PeftConfig, tiny_model: Path, config, scored: Dataset):
    """Prompt, prefix and p-tuning: the loss of the first step is that of PEFT's own model, and goes down."""
    args = config(max_steps=12, optim="adamw_torch", learning_rate=1e-2, per_device_train_batch_size=8)
    trainer = trainer_of(tiny_model, args, scored, adapter)
    assert trainer.args.packing is False
    before = {name: tensor.clone() for name, tensor in moved_weights(trainer).items()}
    assert logps_of(trainer.model, scored) == pytest.approx(peft_logps(trainer, scored), rel=1e-4)
    trainer.train()
    losses = log_column(trainer, "loss")
    assert losses[-1] < 0.9 * losses[0]
    assert any(not torch.equal(before[name], tensor) for name, tensor in moved_weights(trainer).items())


def peft_logps(trainer: MODPOTrainer, scored: Dataset) -> list[float]:
    """PEFT's own loss of one sequence at a time."""
    found = []
    for row in scored.select(range(3)):
        for response in row["responses_ids"]:
            ids = torch.tensor([row["prompt_ids"] + response])
            labels = torch.tensor([[-100] * len(row["prompt_ids"]) + response])
            with torch.no_grad():
                loss = trainer.model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
            found.append(-loss.item() * len(response))
    return found


@virtual
def test_virtual_tokens_are_refused_before_scoring_where_rows_are_to_be_packed(
    adapter: PeftConfig, tiny_model: Path, config, tmp_path: Path
):
    with pytest.raises(InputError, match=rf"{adapter.peft_type.value}.*fix: set `packing: false`"):
        trainer_of(tiny_model, config(packing=True), preference_rows(), adapter)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("packing", ["auto", True])
def test_trained_tokens_are_read_packed(tied: bool, packing: Any, tiny_model: Path, config):
    """With `trainable_token_indices` in the head, packed trains as padded does."""
    tokens = [5, 9, 40]
    named = tokens if tied else {"embed_tokens": tokens, "lm_head": tokens}
    adapter = LoraConfig(**LORA, trainable_token_indices=named)

    def run(packing: Any) -> MODPOTrainer:
        settings = AutoModelForCausalLM.from_pretrained(tiny_model).config.to_dict() | {"tie_word_embeddings": tied}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**settings)).float()
        trainer = trainer_of(tiny_model, config(packing=packing), preference_rows(), adapter, model)
        trainer.train()
        return trainer

    packed, padded = run(packing), run(False)
    assert packed.args.packing is True
    assert log_column(packed, "loss") == pytest.approx(log_column(padded, "loss"), rel=1e-4)
    theirs = moved_weights(padded)
    assert any("trainable_tokens" in name for name in theirs)
    for name, tensor in moved_weights(packed).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)


def test_adapters_that_packed_rows_do_not_pass_are_found_when_they_are_on(
    tiny_model: Path, config, scored: Dataset, monkeypatch: pytest.MonkeyPatch
):
    """The bare model packs; what its adapters compute depends on the row."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)

    def breaks(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.base_layer(x) * (1 + 0.1 * x.shape[1])

    monkeypatch.setattr("modpo.training.trainer.join_products", lambda trainer: None)
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.forward", breaks)
    with pytest.raises(InputError, match=r"cannot read packed rows: its log-probs come out .*% off"):
        trainer_of(tiny_model, config(packing=True), scored, LoraConfig(**LORA), model)
    trainer = trainer_of(tiny_model, config(), scored, LoraConfig(**LORA))
    assert trainer.args.packing is False
    assert trainer.data_collator.packing is False


# --- step 0 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"packing": False}, {"disable_dropout": False}, {"neftune_noise_alpha": 5.0}], ids=str
)
def test_data_of_another_model_is_refused(settings: dict[str, Any], tiny_model: Path, config, scored: Dataset):
    trainer = trainer_of(tiny_model, config(**settings), wrong(scored), LoraConfig(**LORA))
    with pytest.raises(InputError, match=r"log-probs are 3\d\.\d% apart; fix: score the data again"):
        trainer.train()


def test_noise_of_the_embeddings_is_trained_with(tiny_model: Path, config, scored: Dataset):
    """NEFTune: not the data's fault at step 0, and not without effect."""
    noisy = trainer_of(tiny_model, config(neftune_noise_alpha=50.0), scored, LoraConfig(**LORA))
    noisy.train()
    plain = trainer_of(tiny_model, config(packing=False), scored, LoraConfig(**LORA))
    plain.train()
    assert noisy.args.packing is False
    assert len(log_column(noisy, "loss")) == 3
    assert log_column(noisy, "rewards/margins")[0] != pytest.approx(log_column(plain, "rewards/margins")[0], rel=1e-3)


def test_dropout_is_trained_with(tiny_model: Path, config, scored: Dataset):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.5)
    assert (
        trainer_of(tiny_model, config(), scored, LoraConfig(**LORA), model).args.packing is True
    )  # it is switched off
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.5)
    trainer = trainer_of(tiny_model, config(disable_dropout=False), scored, LoraConfig(**LORA, lora_dropout=0.5), model)
    trainer.train()
    assert trainer.args.packing is False
    assert len(log_column(trainer, "loss")) == 3
    assert abs(log_column(trainer, "weighted_rewards/chosen")[0]) > 1e-2
    with pytest.raises(InputError, match="its attention has dropout"):
        trainer_of(tiny_model, config(disable_dropout=False, packing=True), scored, None, model)


@pytest.mark.parametrize("steps", [1, 3])
def test_training_may_be_called_again(steps: int, tiny_model: Path, config, scored: Dataset):
    """The second call starts from a policy that has moved away from the reference."""
    settings = {"max_steps": steps, "optim": "adamw_torch", "learning_rate": 1e-2}
    trainer = trainer_of(tiny_model, config(**settings), scored, LoraConfig(**LORA))
    trainer.train()
    first = log_column(trainer, "loss")[-1]
    trainer.train()
    assert log_column(trainer, "loss")[-1] < first


def test_an_adapter_that_starts_elsewhere(tiny_model: Path, config, scored: Dataset):
    adapter = LoraConfig(**LORA, init_lora_weights=False)
    trainer = trainer_of(tiny_model, config(), scored, adapter)
    trainer.train()
    assert len(log_column(trainer, "loss")) == 3
    assert not adds_nothing(adapter)
    assert adds_nothing(LoraConfig(**LORA))
    assert adds_nothing(None)


def test_a_model_with_an_adapter_is_the_reference_as_it_is(tiny_model: Path, config):
    """Virtual tokens that are there already are part of the reference."""
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), VIRTUAL[0])
    trainer = trainer_of(tiny_model, config(), preference_rows(), model=model)
    trainer.train()
    assert log_column(trainer, "weighted_rewards/chosen")[0] == pytest.approx(0, abs=1e-3)
    assert causal_lm(trainer.model).config.model_type == "llama"
