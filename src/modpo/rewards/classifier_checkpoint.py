"""A sequence-classification model on disk: a whole one, or a PEFT adapter with its base. Checked before it is read."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.errors import InputError, Problem
from modpo.data.clock import TODAY, Clock
from modpo.experiment.sections import ModelSection
from modpo.models.adapters import ADAPTER_WEIGHTS, adapter_config, adapter_fingerprint, attach_adapter, fit_adapter
from modpo.models.folders import (
    ADAPTER_CONFIG,
    device,
    find_folder,
    is_adapter,
    model_fingerprint,
    read_model,
    require_model,
    skeleton,
    tensor_shapes,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")  # the last layer, (labels, hidden size)
TASK = "SEQ_CLS"  # PEFT's name for sequence classification


class ClassifierCheckpoint:
    """Found and checked at once, from the configuration and the headers of the files; read by `read`.

    Args:
        section: its name, and whether its own code may run.
        where, field: what an error names.
        clock: the date that the chat template sees.

    Raises:
        InputError: it is not there, is pickled, has no classification head, or is an adapter of something else.
    """

    def __init__(self, section: ModelSection, cache_dir: Path, where: str, field: str, clock: Clock = TODAY) -> None:
        from transformers import AutoModelForSequenceClassification

        self._where, self._field, self._trust, self._clock = where, field, section.trust_remote_code, clock
        self.folder = self._base = find_folder(section, cache_dir, where, field)
        settings = {}
        if is_adapter(self.folder):
            self._base = self._find_base(section, cache_dir)
            settings = {"num_labels": self._adapter_labels()}
        require_model(self._base, where, field)
        outline = skeleton(
            AutoModelForSequenceClassification, self._base, where, field, trust_remote_code=self._trust, **settings
        )
        self.config: PreTrainedConfig = outline.config
        self.positions = _positions(outline)
        body = outline.base_model_prefix + "."
        self._head = {name: tuple(p.shape) for name, p in outline.named_parameters() if not name.startswith(body)}
        if is_adapter(self.folder):
            fit_adapter(self.folder, outline, where, field)
        else:
            self._require_head()

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Configuration and weights, for a cache key; never its path."""
        adapter = {"adapter": adapter_fingerprint(self.folder)} if is_adapter(self.folder) else {}
        return {**model_fingerprint(self._base), **adapter}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; that of an adapter's base where the adapter brings none."""
        from transformers import AutoTokenizer

        folder = self.folder if (self.folder / "tokenizer_config.json").is_file() else self._base
        return self._clock.stop(AutoTokenizer.from_pretrained(folder, trust_remote_code=self._trust))

    def read(self, dtype: str, *, load_in_8bit: bool = False) -> PreTrainedModel | PeftModel:
        """The weights, in evaluation mode, on the accelerator where there is one.

        Raises:
            InputError: the files lack weights besides those of the head.
        """
        import torch
        from transformers import AutoModelForSequenceClassification

        adapted, number_format = is_adapter(self.folder), getattr(torch, dtype)
        arguments: dict[str, Any] = {}
        if load_in_8bit:
            from transformers import BitsAndBytesConfig

            arguments = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device()}}
        model = read_model(
            AutoModelForSequenceClassification,
            self._base,
            self._where,
            self._field,
            brought=self._head if adapted else (),
            dtype=number_format,
            num_labels=self.config.num_labels,
            trust_remote_code=self._trust,
            **arguments,
        )
        if adapted:
            model = attach_adapter(model, self.folder)
        return model if load_in_8bit else model.to(device())

    def _find_base(self, section: ModelSection, cache_dir: Path) -> Path:
        """The base that an adapter's configuration names."""
        path = self.folder / ADAPTER_CONFIG
        config = adapter_config(self.folder, self._where, self._field)
        task, name = config.get("task_type"), config.get("base_model_name_or_path")
        if task != TASK:
            problem = f"{self.folder} is an adapter of task type {task}, which does not classify"
            fix = f"name an adapter of task type {TASK}; one of a language model can be the reward as `implicit`"
            raise InputError(Problem(self._where, self._field, problem, fix))
        if not name:
            problem, fix = "the adapter names no base", "write there the model that it was trained on"
            raise InputError(Problem(str(path), "base_model_name_or_path", problem, fix))
        return find_folder(replace(section, model_name_or_path=name), cache_dir, str(path), "base_model_name_or_path")

    def _adapter_labels(self) -> int:
        """How many labels an adapter's head has: its base's configuration may not know."""
        shapes = tensor_shapes(self.folder.glob(ADAPTER_WEIGHTS), self._where, self._field)
        for name, shape in shapes.items():
            if name.endswith(HEADS):
                return shape[0]
        problem = f"{self.folder} has no {ADAPTER_WEIGHTS} with a classification head"
        fix = "merge the adapter into its base, and save the classifier with save_pretrained"
        raise InputError(Problem(self._where, self._field, problem, fix))

    def _require_head(self) -> None:
        """Refuse a model without its head, which transformers would draw at random."""
        found = tensor_shapes(sorted(self.folder.glob("*.safetensors")), self._where, self._field)
        for name, shape in self._head.items():
            if found.get(name) == shape:
                continue
            problem = f"{self.folder}: {name} is {found.get(name)}, but config.json makes it {shape}"
            fix = "give config.json the num_labels of the weights"
            if name not in found:
                kind = ", ".join(self.config.architectures or ["no architecture named"])
                problem = f"{self.folder} ({kind}) has no classification head: {name} is missing"
                fix = "name a sequence-classification model; a language model can be the reward as `implicit`"
            raise InputError(Problem(self._where, self._field, problem, fix))


def _positions(model: PreTrainedModel) -> int | None:
    """The longest text that a model has positions for, in tokens; None where it has no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None or limit < 1:
        return None
    for name, module in model.named_modules():  # RoBERTa and its kin count positions from behind the padding id
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - module.padding_idx - 1
    return int(limit)
