"""A policy that can be read: pi, and the reference pi_ref from which it was trained, ready within a context each."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.progress import Progress
from modpo.models.adapters import adapter_fingerprint, attach_adapter, merge_adapter, require_adapter
from modpo.models.folders import is_adapter
from modpo.models.quantized import is_quantized
from modpo.models.reference import ReferenceModel

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Policy:
    """The reference itself, the reference with an adapter, or a model of its own.

    Nothing is read before it is needed. With an adapter there is one base in memory, which is pi_ref without it.

    Args:
        reference: pi_ref.
        folder: of an adapter, or of a whole model; None: the reference itself.
        where, field: what an error names.
    """

    def __init__(
        self, reference: ReferenceModel, folder: Path | None = None, where: str | None = None, field: str = ""
    ) -> None:
        self.reference_model, self.folder = reference, folder
        self._where, self._field = where or str(folder), field

    @property
    def is_adapter(self) -> bool:
        """Whether pi is the reference with an adapter."""
        return self.folder is not None and is_adapter(self.folder)

    @cached_property
    def own_model(self) -> ReferenceModel:
        """The model of a policy whose weights are all its own."""
        base = self.reference_model
        section = replace(base.section, model_name_or_path=str(self.folder), revision=None)
        return ReferenceModel(section, base.cache_dir, self._where, self._field, base.clock)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides log pi and log pi_ref, for a cache key; never a path."""
        if self.folder is not None and self.is_adapter:
            return {"adapter": adapter_fingerprint(self.folder), "base": self.reference_model.fingerprint}
        return {"policy": self.own_model.fingerprint, "reference": self.reference_model.fingerprint}

    @contextmanager
    def loaded(self, *, merged: bool = False) -> Iterator[PreTrainedModel | PeftModel]:
        """pi, in evaluation mode; afterwards the reference is what it was.

        Args:
            merged: an adapter is merged into a copy of its base. On a CPU an adapter beside its base halves the speed
                of generation. Into a quantised base it is not: the sum would be rounded.
        """
        reference = self.reference_model
        if self.folder is None:
            yield reference.model
        elif not self.is_adapter:
            yield self.own_model.model
        elif merged and not is_quantized(reference.model):
            from modpo.forward.logprobs import detach_packed_forward

            require_adapter(self.folder, self._where, self._field)
            twin = copy.deepcopy(reference.model)
            detach_packed_forward(twin)
            yield merge_adapter(twin, self.folder)
        else:
            require_adapter(self.folder, self._where, self._field)
            model = attach_adapter(reference.model, self.folder)
            try:
                yield model
            finally:
                model.unload()
                if model.peft_config["default"].modules_to_save:  # PEFT leaves the trained copies in the base
                    reference.release()

    @contextmanager
    def reference(self, model: PreTrainedModel | PeftModel) -> Iterator[PreTrainedModel | PeftModel]:
        """pi_ref, while pi is loaded as `model`: that without its adapter, or else the base."""
        if hasattr(model, "disable_adapter"):
            with model.disable_adapter():
                yield model
        else:
            yield self.reference_model.model

    def log_ratios(
        self,
        model: PreTrainedModel | PeftModel,
        prompts_ids: Sequence[Sequence[int]],
        responses_ids: Sequence[Sequence[Sequence[int]]],
        *,
        packing: bool,
        ours: Sequence[float] | None = None,
        label: str | None = None,
    ) -> list[float]:
        """log pi(y|x) - log pi_ref(y|x) of all responses, one flat list, nats. 0 for the reference itself.

        Args:
            model: what `loaded` gave.
            prompts_ids: token ids of N prompts. responses_ids: of each prompt's responses.
            ours: log pi of them, where it was taken as pi gave them; None: it is read.
            label: what the console is told of reading pi_ref.
        """
        if self.folder is None:
            return [0.0 for group in responses_ids for _ in group]
        if ours is None:
            ours = flat_logps(model, prompts_ids, responses_ids, packing=packing)
        with self.reference(model) as base:
            theirs = flat_logps(base, prompts_ids, responses_ids, packing=packing, label=label)
        return [a - b for a, b in zip(ours, theirs, strict=True)]

    def release(self) -> None:
        """Forget all weights; whoever needs them next reads them again."""
        self.reference_model.release()
        if "own_model" in self.__dict__:
            self.own_model.release()


def flat_logps(
    model: PreTrainedModel | PeftModel,
    prompts_ids: Sequence[Sequence[int]],
    responses_ids: Sequence[Sequence[Sequence[int]]],
    *,
    packing: bool,
    label: str | None = None,
) -> list[float]:
    """log pi(y|x) of all responses of N prompts, one flat list, nats.

    Args:
        label: what the console is told of it; None: nothing.
    """
    from modpo.forward.frozen import logps_by_group

    groups = logps_by_group(model, prompts_ids, responses_ids, packing=packing)
    if label is None:
        return [x for group in groups for x in group]
    with Progress(label, len(prompts_ids), "prompts") as progress:
        return [x for group in progress.over(groups) for x in group]
