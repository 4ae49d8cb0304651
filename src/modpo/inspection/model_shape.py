"""The sizes of a model that memory and work depend on, from its configuration alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from modpo.experiment.sections import LoraSection, ModelSection

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that memory and work depend on."""

    parameters: int
    body: int  # parameters of the layers alone, each of them multiplied once per token
    trainable: int  # of the adapters, or all parameters
    layers: int
    hidden: int
    intermediate: int
    heads: int
    queries: int  # heads x head size
    keys: int  # key heads x head size; values have as many
    vocabulary: int
    bytes: int  # of one number
    lora: bool

    @property
    def trained_per_token(self) -> int:
        """Trained parameters that each token is multiplied with: the head is counted apart."""
        return self.trainable if self.lora else self.body


def model_shape(folder: Path, section: ModelSection, lora: LoraSection | None) -> ModelShape:
    """The shape of the model in a folder, from its config.json: no weight is read, none takes memory.

    Raises:
        ValueError: adapters for modules that the model does not have.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from modpo.models.folders import lora_config

    trust = section.trust_remote_code
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust)
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        tables = {id(table): table.numel() for table in (embedding, head)}  # one, where they are tied
        parameters = model.num_parameters()
        if lora is not None:
            from peft import get_peft_model

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an old name
                model = get_peft_model(model, lora_config(lora))
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelShape(
        parameters=parameters,
        body=parameters - sum(tables.values()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        heads=heads,
        queries=heads * head_size,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * head_size,
        vocabulary=text.vocab_size,
        bytes=BYTES[section.dtype],
        lora=lora is not None,
    )
