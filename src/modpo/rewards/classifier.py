"""A reward model: a language model with a classification head, whose logit is the reward."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from modpo.base.costs import count
from modpo.base.errors import EnvironmentFault, InputError, Problem
from modpo.base.progress import say
from modpo.data.tokens import identity as tokenizer_identity
from modpo.experiment.sections import RewardSection
from modpo.forward.rope import fixed_up_to, forget_longer_rows, read_together
from modpo.models.folders import device
from modpo.rewards.batch import RewardBatch, RewardContext, check_scores
from modpo.rewards.classifier_checkpoint import ClassifierCheckpoint
from modpo.rewards.classifier_input import ClassifierInput, Encoded

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

# `problem_type` of labels that do not exclude one another: each has a logit of its own.
INDEPENDENT = ("multi_label_classification", "regression")


class ClassifierReward:
    """The logit that a sequence-classification model gives a response to a prompt.

    Of several labels it is the log-odds of the named one, its logit minus logsumexp of the others', so that a reward
    difference is in the unit that the loss assumes. Labels that do not exclude one another (`problem_type` in the
    model's configuration) have logits of their own, and keep them.

    `modpo.rewards.classifier_input` says how prompt and response are read.
    """

    scores_new_text: ClassVar[bool] = True

    def __init__(self, section: RewardSection, context: RewardContext, *, where: str, name: str, field: str) -> None:
        """Find the model and check that it can score. No weight is read.

        Raises:
            InputError: a model that cannot be had or does not classify; a label that it does not have, or none named
                where it has several; a `max_length` beyond its positions; nothing to fill a batch up with.
            EnvironmentFault: 8-bit weights without a GPU or without bitsandbytes.
        """
        self.name, self._section = name, section
        self._where, self._field = where, field
        if section.load_in_8bit:
            _require_8bit(f"{where}:{self._field}.load_in_8bit")
        dtype = section.dtype or context.model.dtype
        model = replace(context.model, model_name_or_path=section.reward_model or "", dtype=dtype, revision=None)
        self._read_as = model
        self._checkpoint = ClassifierCheckpoint(
            model, context.cache_dir, where, f"{self._field}.reward_model", context.clock
        )
        self._label = self._label_index()
        self._input = ClassifierInput(self._checkpoint.tokenizer, self._max_length())
        self._pad_id = self._padding()
        self._said_cut = False

    def __call__(self, batch: RewardBatch) -> list[float]:
        """Raw scores, (B,), in the batch's order.

        Raises:
            InputError: the chat template refuses a conversation. NumericError: a score that is not finite.
        """
        texts = zip(batch.prompts, batch.responses, batch.where, strict=True)
        encoded = [self._input.encode(prompt, response, where) for prompt, response, where in texts]
        self._say_what_was_cut(encoded)
        scores = [0.0] * len(batch)
        longest_first = sorted(range(len(batch)), key=lambda i: -len(encoded[i].input_ids))  # for little padding
        for start in range(0, len(batch), self._section.batch_size):
            part = longest_first[start : start + self._section.batch_size]
            for i, score in zip(part, self._score([encoded[i] for i in part]), strict=True):
                scores[i] = score
        return check_scores(scores, batch, field=self.name, fix="check the reward model's weights and dtype")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Weights, configuration, tokenizer and settings; not the path, nor how many are read at a time."""
        return {
            "version": 2,  # 2: buffers keep their float32
            "reward_model": self._checkpoint.fingerprint,
            "tokenizer": tokenizer_identity(self._input.tokenizer, self._input.max_length, None),
            "input": self._input.identity,
            "pad_token_id": self._pad_id,
            "label": self._label,
            "dtype": self._read_as.number_format,
            "load_in_8bit": self._section.load_in_8bit,
        }

    def release(self) -> None:
        """Forget the weights; the next call reads them again."""
        self.__dict__.pop("_model", None)

    @cached_property
    def _model(self) -> PreTrainedModel | PeftModel:
        model = self._checkpoint.read(self._read_as.number_format, load_in_8bit=self._section.load_in_8bit)
        model.config.get_text_config().pad_token_id = self._pad_id
        return model

    def _score(self, encoded: Sequence[Encoded]) -> list[float]:
        """Scores, (b,): of one forward pass, or more where a text's rope would depend on the others."""
        limit = fixed_up_to(self._model.config)
        scores: dict[int, float] = {}
        for places in read_together([len(text.input_ids) for text in encoded], limit):
            if limit is not None:
                forget_longer_rows(self._model)
            scores |= dict(zip(places, self._score_together([encoded[i] for i in places]), strict=True))
        return [scores[i] for i in range(len(encoded))]

    def _score_together(self, encoded: Sequence[Encoded]) -> list[float]:
        """Scores of one forward pass, (b,)."""
        import torch

        model = self._model
        inner = getattr(model, "get_base_model", lambda: model)()  # PEFT's forward takes anything
        known = inspect.signature(inner.forward).parameters
        inputs = {n: t.to(model.device) for n, t in self._input.pad(encoded, self._pad_id).items() if n in known}
        with torch.inference_mode():
            logits: Tensor = model(**inputs).logits  # (b, labels)
            count(forward_passes=1)
            return self._reward(logits.to(torch.promote_types(logits.dtype, torch.float32))).tolist()

    def _reward(self, logits: Tensor) -> Tensor:
        """(b, labels) -> (b,)."""
        import torch

        own = logits[:, self._label]
        if logits.shape[1] == 1 or self._checkpoint.config.problem_type in INDEPENDENT:
            return own
        others = torch.cat([logits[:, : self._label], logits[:, self._label + 1 :]], dim=1)
        return own - others.logsumexp(dim=1)

    def _say_what_was_cut(self, encoded: Sequence[Encoded]) -> None:
        """Truncation is no error, and never silent."""
        if not self._said_cut and any(item.cut for item in encoded):
            self._said_cut = True
            say(
                f"warning: reward {self.name}: a prompt loses its beginning where it and its response are longer than "
                f"{self._input.max_length} tokens; fix: shorter prompts, or another `{self._field}.max_length`"
            )

    # --- checks ---------------------------------------------------------------------------------------------

    def _label_index(self) -> int:
        """Which logit is the reward."""
        label = self._section.label
        labels: dict[int, str] = self._checkpoint.config.id2label
        if label is None and len(labels) == 1:
            return 0
        for index, known in labels.items():
            if known == label:
                return index
        problem = f"the model has no label {label!r}" if label else f"the model has {len(labels)} labels, none is named"
        raise InputError(
            Problem(self._where, f"{self._field}.label", problem, f"use one of: {', '.join(labels.values())}")
        )

    def _max_length(self) -> int:
        """Tokens that the model reads."""
        asked, positions, tokenizer = self._section.max_length, self._checkpoint.positions, self._checkpoint.tokenizer
        least = tokenizer.num_special_tokens_to_add(pair=True) + 1
        if asked is not None and not least <= asked <= (positions or asked):
            most = "any number of" if positions is None else positions
            problem = f"is {asked}, but the model reads from {least} to {most} tokens"
            raise InputError(Problem(self._where, f"{self._field}.max_length", problem, "change it, or leave it out"))
        tokenizer_limit = int(tokenizer.model_max_length)  # astronomical where there is none
        return asked or min(tokenizer_limit, positions or tokenizer_limit)

    def _padding(self) -> int:
        """The id that fills a batch up: the one by which the model finds a text's last token, if it names one."""
        tokenizer, config = self._checkpoint.tokenizer, self._checkpoint.config.get_text_config()
        for pad_id in (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id):
            if pad_id is not None and pad_id >= 0:
                return int(pad_id)
        problem = "the model has neither a padding nor an end-of-text token, so texts cannot be read together"
        fix = "set pad_token in its tokenizer_config.json"
        raise InputError(Problem(self._where, f"{self._field}.reward_model", problem, fix))


def _require_8bit(place: str) -> None:
    if device() not in ("cuda", "xpu"):
        raise EnvironmentFault(f"{place}: 8-bit weights need a GPU, and there is none; fix: leave it out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EnvironmentFault(f"{place}: the package bitsandbytes is not installed; fix: pip install bitsandbytes")
