"""The reward that a policy was trained to maximise: beta log(pi / pi_ref), read off two language models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from modpo.base.errors import InputError, Problem
from modpo.base.files import read_manifest
from modpo.data.chat_template import TurnEnd, turn_end
from modpo.data.prompt_group import PromptGroup, plain_text
from modpo.data.tokens import identity as tokenizer_identity
from modpo.data.tokens import require_usable, tokenize_group, tokenize_prompt
from modpo.experiment.sections import RewardSection
from modpo.forward.packing import runs
from modpo.forward.packing_choice import packing_of
from modpo.forward.packing_needs import Needs
from modpo.forward.policy import Policy
from modpo.models.adapters import ADAPTER_WEIGHTS, adapter_config, fit_adapter
from modpo.models.folders import find_folder, skeleton, tensor_shapes
from modpo.models.reference import ReferenceModel
from modpo.rewards.batch import RewardBatch, RewardContext, check_scores

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TASK = "CAUSAL_LM"  # PEFT's name for language modelling
# Ways to start LoRA (PEFT's `init_lora_weights`) that take something out of the base's own weights.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")

Group = tuple[list[int], list[list[int]]]  # a prompt's ids, and those of each response


class ImplicitReward:
    """r(x, y) = beta (log pi(y|x) - log pi_ref(y|x)).

    A policy that DPO trained on preferences is optimal for this reward, up to a function of x that cancels in every
    difference (Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    NeurIPS 2023, eq. 5).

    Texts become the ids that they are in training; responses to one prompt that follow each other are read with it
    once. beta is the section's, else that of the manifest beside the policy, else the experiment's.
    """

    scores_new_text: ClassVar[bool] = True

    def __init__(self, section: RewardSection, context: RewardContext, *, where: str, name: str, field: str) -> None:
        """Find both models and check that they belong together. Only an adapter's weights are read.

        Raises:
            InputError: a model that cannot be had; an adapter of another base, damaged or not finite, or one without
                which its base is not what it was; a policy and a reference with different tokenizers.
            IntegrityError: the policy differs from its manifest.
        """
        self.name, self._field, self._context = name, field, context
        model = replace(context.model, dtype=section.dtype or context.model.dtype)
        named = replace(model, model_name_or_path=section.implicit or "", revision=None)
        folder = find_folder(named, context.cache_dir, where, f"{field}.implicit")
        manifest = read_manifest(folder) or {}
        self._beta = float(section.beta if section.beta is not None else manifest.get("beta", context.beta))
        if section.reference is None:
            reference = ReferenceModel(model, context.cache_dir, where, clock=context.clock)
        else:
            other = replace(model, model_name_or_path=section.reference, revision=None)
            reference = ReferenceModel(other, context.cache_dir, where, f"{field}.reference", context.clock)
        self._tokenizer = reference.tokenizer
        self._policy = Policy(reference, folder, where, f"{field}.implicit")
        # Of a head that an adapter changes, packed reading would make all logits, as padded reading does.
        self._adapts_head = self._policy.is_adapter and adapts_head(folder, reference, where, f"{field}.implicit")
        if not self._policy.is_adapter:
            _require_one_vocabulary(self._policy.own_model, reference, where, f"{field}.implicit")
        self._open = ExitStack()  # what is loaded until it is released

    def __call__(self, batch: RewardBatch) -> list[float]:
        """Raw scores, (B,), in the batch's order.

        Raises:
            InputError: a text that cannot be tokenized. NumericError: a score that is not finite.
        """
        groups = [part for group in self._groups(batch) for part in _parts(*group)]
        prompts_ids, responses_ids = [prompt for prompt, _ in groups], [responses for _, responses in groups]
        ratios = self._policy.log_ratios(self._model, prompts_ids, responses_ids, packing=self._packing)
        scores = [self._beta * ratio for ratio in ratios]
        return check_scores(scores, batch, field=self.name, fix="check the weights and dtype of policy and reference")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Both models, beta, and how texts become ids; no path."""
        lengths = self._context.max_length, self._context.max_prompt_length
        return {
            "version": 2,  # 2: buffers keep their float32
            "implicit": self._policy.fingerprint,
            "beta": self._beta,
            "tokenizer": tokenizer_identity(self._tokenizer, *lengths),
            "packing": self._packing,
        }

    @cached_property
    def _packing(self) -> bool:
        """Whether both models are read packed."""
        context, policy = self._context, self._policy
        asked = False if self._adapts_head else context.packing
        models = [policy.reference_model, *([] if policy.is_adapter else [policy.own_model])]
        needs = Needs(context.max_length)
        return all([packing_of(asked, model, needs, context.cache_dir) for model in models])

    @cached_property
    def _model(self) -> PreTrainedModel | PeftModel:
        """The policy, loaded at the first call and kept for those that follow."""
        return self._open.enter_context(self._policy.loaded())

    def release(self) -> None:
        """Forget the weights; the next call reads them again."""
        self._open.close()
        self.__dict__.pop("_model", None)
        self._policy.release()

    def _groups(self, batch: RewardBatch) -> Iterator[Group]:
        """Runs of entries with the same prompt, as ids."""
        conversational = any(not isinstance(prompt, str) for prompt in batch.prompts)
        require_usable(self._tokenizer, conversational=conversational, where=self._field)
        for _, run in groupby(range(len(batch)), key=lambda i: (batch.prompts[i], batch.template_kwargs[i])):
            entries = list(run)
            i = entries[0]
            responses = tuple(batch.responses[i] for i in entries)
            kwargs = batch.template_kwargs[i]
            yield self._tokenize(PromptGroup(batch.prompts[i], responses, where=batch.where[i], template_kwargs=kwargs))

    def _tokenize(self, group: PromptGroup) -> Group:
        """A prompt's ids and each response's, as in training. A policy may answer nothing: that is its end alone."""
        max_length, max_prompt_length = self._context.max_length, self._context.max_prompt_length
        texts = tuple(response for response in group.responses if plain_text(response).strip())
        if texts:
            tokenized = tokenize_group(
                replace(group, responses=texts),
                self._tokenizer,
                max_length=max_length,
                max_prompt_length=max_prompt_length,
            )
            prompt_ids, texts_ids = tokenized.prompt_ids, iter(tokenized.responses_ids)
        else:
            longest, kwargs = max_prompt_length or max_length - 1, group.template_kwargs
            prompt_ids = tokenize_prompt(group.prompt, self._tokenizer, kwargs, longest=longest)
            texts_ids = iter([])
        end = _end(group, self._tokenizer)
        return prompt_ids, [next(texts_ids) if plain_text(response).strip() else end for response in group.responses]


def _parts(prompt_ids: list[int], responses_ids: list[list[int]]) -> Iterator[Group]:
    """A group in parts that one forward pass can read: evaluation may bring very many answers to a prompt."""
    from modpo.forward.frozen import TOKENS_PER_FORWARD

    for part in runs([len(ids) for ids in responses_ids], TOKENS_PER_FORWARD - len(prompt_ids)):
        yield prompt_ids, responses_ids[part]


def _end(group: PromptGroup, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a response: what the chat template writes behind it, else end-of-text."""
    turn = TurnEnd() if isinstance(group.prompt, str) else turn_end(tokenizer, group.template_kwargs)
    ids: list[int] = tokenizer(turn.text, add_special_tokens=False)["input_ids"] if turn.tokens else []
    return ids or [tokenizer.eos_token_id]


# --- models that belong together ----------------------------------------------------------------------------


def adapts_head(folder: Path, base: ReferenceModel, where: str, field: str) -> bool:
    """Check an adapter against its base's configuration, and tell whether it changes the language model head.

    The base is what the experiment says, not the path in the adapter's configuration, which may be of another machine.

    Raises:
        InputError: they do not belong together, or cannot be taken apart.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import AutoModelForCausalLM

    trust = base.section.trust_remote_code
    _require_separable(folder, where, field)
    outline = skeleton(AutoModelForCausalLM, base.folder, where, field, trust_remote_code=trust)
    fit_adapter(folder, outline, where, field)
    return isinstance(outline.get_output_embeddings(), BaseTunerLayer)


def _require_separable(folder: Path, where: str, field: str) -> None:
    """Refuse an adapter that is no language model's, or that leaves traces in the base when it is taken off."""
    config = adapter_config(folder, where, field)
    task, bias, start = config.get("task_type") or TASK, config.get("bias"), str(config.get("init_lora_weights"))
    if task != TASK:
        fix = f"name one of task type {TASK}; a classifier can be the reward as `reward_model`"
        raise InputError(Problem(where, field, f"{folder} is an adapter of task type {task}", fix))
    changes = [f"bias: {bias}"] * (bias not in (None, "none"))
    changes += [f"init_lora_weights: {start}"] * start.lower().startswith(CHANGES_BASE)
    changes += [name for name in tensor_shapes(folder.glob(ADAPTER_WEIGHTS), where, field) if ".base_layer." in name]
    if changes:
        problem = f"{folder} changes weights of the base itself ({changes[0]}), so the base alone is not pi_ref"
        fix = "merge it into its base, save that, and name the base as `reference`"
        raise InputError(Problem(where, field, problem, fix))


def _require_one_vocabulary(policy: ReferenceModel, reference: ReferenceModel, where: str, field: str) -> None:
    """Refuse models to which the same ids are different texts."""
    ours, theirs = (tokenizer_identity(model.tokenizer, 0, None) for model in (policy, reference))
    differing = [name for name, value in ours.items() if value != theirs[name]]
    if differing:
        problem = f"{policy.folder} and {reference.folder} do not share a tokenizer ({', '.join(differing)} differ)"
        fix = "name the model that the policy was trained from as `reference`"
        raise InputError(Problem(where, field, problem, fix))
