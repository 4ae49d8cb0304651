"""The reference policy: of an experiment, on disk, or a model that is in memory already."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from modpo.base.errors import InputError, Problem
from modpo.data.chat_template import PLAIN, TurnEnd, stop_ids, turn_end
from modpo.data.clock import TODAY, Clock
from modpo.data.groups import PromptGroups
from modpo.experiment.sections import Experiment, ModelSection
from modpo.models.folders import (
    FIELD,
    decisive,
    device,
    end_ids,
    find_folder,
    model_fingerprint,
    own_end_ids,
    plain_json,
    read_model,
    read_tokenizer,
    require_model,
    skeleton,
)
from modpo.models.positions import VOCABULARY_FIX, most_positions, vocabulary_size

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Reference(Protocol):
    """The reference policy: `ReferenceModel` on disk, or `LoadedModel` in memory."""

    @property
    def fingerprint(self) -> dict[str, Any]: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def model(self) -> PreTrainedModel: ...
    @property
    def own_ends(self) -> list[int]: ...
    @property
    def autocast(self) -> torch.dtype | None: ...
    @property
    def positions(self) -> int | None: ...
    @property
    def vocabulary(self) -> int | None: ...


def answer_ends(reference: Reference, prompts: PromptGroups) -> list[int]:
    """The ids that end an answer of the reference, or of a policy that was trained from it, to one of the prompts."""
    return stop_ids(
        reference.tokenizer,
        conversational=prompts.conversational,
        template_kwargs=prompts.template_kwargs,
        own=reference.own_ends,
    )


def answer_turn(reference: Reference, prompts: PromptGroups) -> TurnEnd:
    """What the chat template writes behind an answer to one of the prompts."""
    return turn_end(reference.tokenizer, prompts.template_kwargs) if prompts.conversational else PLAIN


class ReferenceModel:
    """The base model of an experiment. Found at once, read only when it is needed, read once.

    Args:
        where, field: what an error names: the experiment's file and line, and the field that names the model.
        clock: the date that the chat template sees.

    Attributes:
        autocast: the number format of mixed precision in which it is read: none, it is read in its own.
    """

    autocast: torch.dtype | None = None

    def __init__(
        self,
        section: ModelSection,
        cache_dir: Path,
        where: str = "model",
        field: str = FIELD,
        clock: Clock = TODAY,
    ) -> None:
        self.section, self.cache_dir, self.where, self.field = section, cache_dir, where, field
        self.clock = clock
        self.folder = find_folder(section, cache_dir, where, field)
        require_model(self.folder, where, field)

    @classmethod
    def of(cls, experiment: Experiment, *, writes: bool = True) -> ReferenceModel:
        """The model of an experiment's file.

        Args:
            writes: keep the date that a chat template asks for in the output folder.
        """
        clock = Clock(experiment.output_dir, writes)
        return cls(experiment.model, experiment.cache_dir, experiment.where("model"), clock=clock)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Everything of the model that changes its log-probs, for a cache key; never its path."""
        return {**model_fingerprint(self.folder), "dtype": self.section.number_format}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, with a padding token (its end-of-text token where it has none of its own)."""
        trust = self.section.trust_remote_code
        tokenizer = read_tokenizer(self.folder, self.where, self.field, trust_remote_code=trust)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        _require_vocabulary(tokenizer, self.folder, self.where, self.field)
        return self.clock.stop(tokenizer)

    @cached_property
    def own_ends(self) -> list[int]:
        """The ids that end an answer by the model's own generation settings."""
        return own_end_ids(self.folder, self.where, self.field)

    @cached_property
    def positions(self) -> int | None:
        """Tokens of the longest sequence that it reads, see `most_positions`; no weight is read for it."""
        from transformers import AutoModelForCausalLM

        trust = self.section.trust_remote_code
        outline = skeleton(AutoModelForCausalLM, self.folder, self.where, self.field, trust_remote_code=trust)
        return most_positions(outline)

    @property
    def vocabulary(self) -> None:
        """Not to be asked: a tokenizer with ids that the model lacks is refused as it is read."""
        return None

    @cached_property
    def model(self) -> PreTrainedModel:
        """The weights in `dtype`, in evaluation mode, on the accelerator where there is one."""
        import torch
        from transformers import AutoModelForCausalLM

        model = read_model(
            AutoModelForCausalLM,
            self.folder,
            self.where,
            self.field,
            dtype=getattr(torch, self.section.number_format),
            trust_remote_code=self.section.trust_remote_code,
        )
        return model.to(device())

    def release(self) -> None:
        """Forget the weights; whoever needs them next reads them again."""
        self.__dict__.pop("model", None)


class LoadedModel:
    """A reference policy that is in memory already.

    Args:
        clock: the date that the chat template sees.
        autocast: the number format of mixed precision in which it is read; None: its own.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        clock: Clock = TODAY,
        autocast: torch.dtype | None = None,
    ) -> None:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model, self.tokenizer, self.autocast = model, clock.stop(tokenizer), autocast

    @property
    def own_ends(self) -> list[int]:
        """The ids that end an answer by the model's own generation settings."""
        return end_ids(self.model.generation_config.to_dict() if self.model.generation_config else {})

    @property
    def positions(self) -> int | None:
        """Tokens of the longest sequence that it reads, see `most_positions`."""
        return most_positions(self.model)

    @property
    def vocabulary(self) -> int | None:
        """How many token ids it has embeddings for."""
        return vocabulary_size(self.model)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The configuration, the adapters' configurations, and a hash of all tensors."""
        import torch

        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        adapters = {
            name: {k: v for k, v in adapter.to_dict().items() if k != "base_model_name_or_path"}
            for name, adapter in getattr(self.model, "peft_config", {}).items()
        }
        active = getattr(self.model, "active_adapters", []) if adapters else []
        about: dict[str, Any] = {"adapters": adapters, "active": active}
        if self.autocast is not None:
            about["autocast"] = str(self.autocast)
        if any(getattr(module, "disable_adapters", False) is True for module in self.model.modules()):
            about["adapters_disabled"] = True
        config = decisive(self.model.config.to_dict())
        return {"config": config, **plain_json(about), "weights": digest.hexdigest()}


def _require_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path, where: str, field: str) -> None:
    """Refuse a tokenizer with ids for which the model has no embedding."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except Exception:  # of a model that comes with code of its own, or that reading it will refuse
        return
    size, largest = getattr(config, "vocab_size", None), max(tokenizer.get_vocab().values(), default=-1)
    if size is not None and largest >= size:
        problem = f"the tokenizer of {folder} has ids up to {largest}, but the model's vocabulary ends at {size - 1}"
        raise InputError(Problem(where, field, problem, VOCABULARY_FIX))
