"""The sizes of a model that memory and work depend on, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modpo.experiment.sections import LoraSection, ModelSection
from modpo.models.adapters import add_adapters
from modpo.models.folders import skeleton

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


def model_shape(folder: Path, section: ModelSection, lora: LoraSection | None, where: str = "model") -> ModelShape:
    """The shape of the model in a folder, from its config.json: no weight is read, none takes memory.

    Args:
        where: what an error names.

    Raises:
        InputError: adapters for modules that the model does not have.
    """
    from transformers import AutoModelForCausalLM

    trust = section.trust_remote_code
    model = skeleton(AutoModelForCausalLM, folder, where, "model_name_or_path", trust_remote_code=trust)
    text = model.config.get_text_config()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tables = {id(table): table.numel() for table in (embedding, head)}  # one, where they are tied
    parameters = model.num_parameters()
    trained = add_adapters(model, lora, where) if lora is not None else model
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelShape(
        parameters=parameters,
        body=parameters - sum(tables.values()),
        trainable=sum(p.numel() for p in trained.parameters() if p.requires_grad),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        heads=heads,
        queries=heads * head_size,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * head_size,
        vocabulary=text.vocab_size,
        bytes=BYTES[section.number_format],
        lora=lora is not None,
    )
