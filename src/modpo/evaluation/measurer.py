"""One policy measured: its answers to held-out prompts, their rewards, and how far it is from the reference.

    <output>/evaluation/<name>/responses.jsonl, agreement.json and a manifest
    <cache>/evaluation/<key>/reference/     the same of the reference, which all sweeps share

Kept under a key of policy, prompts and settings, so that measuring again measures only what is new.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modpo.base.costs import Cost, Meter
from modpo.base.files import locked, new_folder, read_manifest, remove_leftovers, sha256_json
from modpo.base.simplex import Weights
from modpo.data.groups import PromptGroups
from modpo.data.tokens import identity as tokenizer_identity
from modpo.data.tokens import stop_ids, tokenize_prompt
from modpo.evaluation.best_of_n import choice_key, chosen_answers
from modpo.experiment.sections import Experiment
from modpo.front.schema import REFERENCE
from modpo.models.adapters import attach_adapter, require_adapter
from modpo.models.folders import TRAINING_LOG, device
from modpo.models.reference import ReferenceModel
from modpo.policies.best_of_n import BestOfN
from modpo.rewards.batch import Reward, answer_batch, check_scores
from modpo.scored.calibration import Calibration
from modpo.scored.data import PAIRS_PREFIX, REWARD_PREFIX, ScoredData

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

RESPONSES = "responses.jsonl"
AGREEMENT = "agreement.json"
LOG_RATIOS = "log_ratios.json"


@dataclass(frozen=True)
class Policy:
    """What is measured: the reference, or a point of a sweep."""

    name: str
    weights: Weights | None  # None: the reference
    folder: Path | None  # its adapter, or its model when all weights were trained
    files: Mapping[str, str]  # sha256 of the adapter's files
    decoding: BestOfN | None = None  # how it answers, if not by sampling from a model of its own


@dataclass(frozen=True)
class Measured:
    """A policy's numbers on N prompts."""

    answers: list[dict[str, Any]]  # the lines of responses.jsonl
    agreement: dict[str, list[float]]  # objectives that cannot score new text: see `Measurer.agreement`
    log_ratios: list[list[float]]  # log pi / pi_ref of the answers that are audited, by prompt; nats
    cost: Cost | None = None  # of measuring; None where an older version did not write it down

    def scores(self, objective: str) -> np.ndarray:
        """Mean reward of a prompt's answers, or its agreement, (N,)."""
        if objective in self.agreement:
            return np.array(self.agreement[objective])
        return self._per_prompt([answer["rewards"][objective] for answer in self.answers])

    def numbers(self, key: str) -> np.ndarray:
        """Mean `kl` (nats) or `tokens` of a prompt's answers, (N,)."""
        return self._per_prompt([answer[key] for answer in self.answers])

    def _per_prompt(self, values: Sequence[float]) -> np.ndarray:
        by_prompt: dict[int, list[float]] = {}
        for answer, value in zip(self.answers, values, strict=True):
            by_prompt.setdefault(answer["prompt_index"], []).append(value)
        return np.array([np.mean(by_prompt[i]) for i in sorted(by_prompt)])


@dataclass(frozen=True)
class Measurer:
    """Measures policies on the same prompts with the same settings.

    Args:
        prompts: N held-out prompt groups.
        rewards: the scorers that can score new text, by objective: see `evaluation_rewards.measuring_rewards`.
        scored: the held-out responses, for objectives that cannot; None when there are none.
        calibrations: of the rewards, as they were fitted for training.
        trained_on: the objectives' own rewards, by which best of n chooses.
        audited: answers to held-out prompts, several to each, on which policies are audited; None: they are not.
    """

    experiment: Experiment
    reference: ReferenceModel
    prompts: PromptGroups
    rewards: Mapping[str, Reward]
    scored: ScoredData | None
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    trained_on: Mapping[str, Reward] = field(default_factory=dict)
    audited: ScoredData | None = None

    def measure(self, policy: Policy) -> Measured:
        """The policy's numbers, read back where they are there already."""
        key = self.key(policy)
        if policy.folder is not None:
            return self._kept_or_new(policy, key, self.experiment.output_dir / "evaluation" / policy.name)
        shared = self.experiment.cache_dir / "evaluation" / key
        with locked(shared, wait=True):
            remove_leftovers(shared)
            return self._kept_or_new(policy, key, shared / policy.name)

    def _kept_or_new(self, policy: Policy, key: str, folder: Path) -> Measured:
        manifest = read_manifest(folder)
        if manifest is None or manifest.get("key") != key:
            with Meter() as meter:
                measured = self._measured(policy)
            manifest = {"key": key, "cost": meter.cost.written()}
            with new_folder(folder, manifest) as temporary:
                lines = [json.dumps(answer, ensure_ascii=False, allow_nan=False) for answer in measured.answers]
                (temporary / RESPONSES).write_text("\n".join(lines) + "\n", "utf-8")
                (temporary / AGREEMENT).write_text(json.dumps(measured.agreement), "utf-8")
                (temporary / LOG_RATIOS).write_text(json.dumps(measured.log_ratios), "utf-8")
        lines = (folder / RESPONSES).read_text("utf-8").split("\n")  # an answer may hold what splitlines() splits at
        agreement, log_ratios = (json.loads((folder / name).read_text("utf-8")) for name in (AGREEMENT, LOG_RATIOS))
        cost = Cost.of(manifest["cost"]) if "cost" in manifest else None
        return Measured([json.loads(line) for line in lines if line], agreement, log_ratios, cost)

    def _measured(self, policy: Policy) -> Measured:
        if policy.decoding is not None:
            return Measured(chosen_answers(self, policy, policy.decoding), {}, [])
        with self._loaded(policy) as model:
            return Measured(
                self._answers(policy, model), self._agreements(policy, model), self._audit_ratios(policy, model)
            )

    def key(self, policy: Policy) -> str:
        """What decides a policy's numbers."""
        settings = asdict(self.experiment.evaluation)
        seed = settings.pop("seed")
        for irrelevant in ("bootstrap", "confidence", "report_prompts", "rewards"):
            del settings[irrelevant]
        chosen = {"chosen": choice_key(self, policy, policy.decoding)} if policy.decoding else {}
        return sha256_json(
            chosen
            | {
                "policy": {name: digest for name, digest in policy.files.items() if name != TRAINING_LOG},
                "reference": self.reference.fingerprint,
                "prompts": self.prompts.fingerprint,
                "tokenizer": tokenizer_identity(self.reference.tokenizer, 0, self.max_prompt_length),
                "rewards": {name: reward.identity for name, reward in self.rewards.items()},
                "agreement": {name: column.key for name, column in self._agreement_columns.items()},
                "audited": self.audited.tokens.key if self.audited and policy.folder else None,
                "settings": settings,
                "seed": seed,
            }
        )

    @property
    def max_prompt_length(self) -> int:
        """As in training: what the answer leaves of `max_length`, half at least."""
        data, answer = self.experiment.data, self.experiment.evaluation.max_new_tokens
        return data.max_prompt_length or max(data.max_length // 2, data.max_length - answer)

    @cached_property
    def prompts_ids(self) -> list[list[int]]:
        """What generation starts from; a prompt that is too long loses its beginning, as in training."""
        tokenizer = self.reference.tokenizer
        return [tokenize_prompt(group.prompt, tokenizer)[-self.max_prompt_length :] for group in self.prompts]

    @contextmanager
    def _loaded(self, policy: Policy) -> Iterator[PreTrainedModel | PeftModel]:
        """The policy ready to answer; afterwards the reference is what it was."""
        base = self.reference.model
        if policy.folder is None:
            yield base
        elif (policy.folder / "adapter_config.json").is_file():
            from peft import PeftModel

            require_adapter(policy.folder, str(policy.folder), "")
            if device() == "cpu":  # there an adapter beside its base halves the speed of generation
                from modpo.forward.logprobs import detach_packed_forward

                twin = copy.deepcopy(base)
                detach_packed_forward(twin)
                yield PeftModel.from_pretrained(twin, policy.folder).merge_and_unload().eval()
                return
            model = attach_adapter(base, policy.folder)
            try:
                yield model
            finally:
                model.unload()
                if model.peft_config["default"].modules_to_save:  # PEFT leaves the trained copies in the base
                    self.reference.__dict__.pop("model", None)
        else:
            from modpo.experiment.sections import ModelSection

            section = ModelSection(str(policy.folder), dtype=self.experiment.model.dtype)
            yield ReferenceModel(section, self.experiment.cache_dir).model

    def _answers(self, policy: Policy, model: PreTrainedModel | PeftModel) -> list[dict[str, Any]]:
        from modpo.forward.generate import generate

        settings, tokenizer = self.experiment.evaluation, self.reference.tokenizer
        indices = [i for i in range(len(self.prompts)) for _ in range(settings.samples_per_prompt)]
        prompts_ids = [self.prompts_ids[i] for i in indices]
        answers_ids = generate(
            model,
            tokenizer,
            prompts_ids,
            ends=stop_ids(tokenizer, conversational=self.prompts.conversational),
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            batch_size=settings.batch_size,
            seed=settings.seed,
            label=f"answers of {policy.name}",
        )
        kl = self._log_ratios(policy, model, prompts_ids, answers_ids)
        texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers_ids]
        rewards = self.score(indices, texts)
        return [
            {
                "policy": policy.name,
                "weights": policy.weights,
                "prompt_index": i,
                "prompt": self.prompts[i].prompt,
                "response": texts[n],
                "rewards": {name: values[n] for name, values in rewards.items()},
                "kl": kl[n],
                "tokens": len(answers_ids[n]),
            }
            for n, i in enumerate(indices)
        ]

    def score(self, indices: Sequence[int], texts: Sequence[str]) -> dict[str, list[float]]:
        """Rewards of answers to the prompts at `indices`, by objective."""
        batch = answer_batch([self.prompts[i] for i in indices], texts)
        return {name: check_scores(reward(batch), batch, field=name) for name, reward in self.rewards.items()}

    def _log_ratios(
        self,
        policy: Policy,
        model: PreTrainedModel | PeftModel,
        prompts_ids: Sequence[Sequence[int]],
        answers_ids: Sequence[Sequence[int]],
    ) -> list[float]:
        """log pi(y|x) - log pi_ref(y|x) of each answer y sampled from pi: its mean estimates KL(pi || pi_ref)."""
        if policy.folder is None:
            return [0.0] * len(answers_ids)
        prompts, answers = list(prompts_ids), [[list(ids)] for ids in answers_ids]
        ours = self._logps(model, prompts, answers)
        with _as_reference(model, self.reference) as base:
            theirs = self._logps(base, prompts, answers)
        return [a - b for a, b in zip(ours, theirs, strict=True)]

    def _logps(
        self,
        model: PreTrainedModel | PeftModel,
        prompts_ids: Sequence[Sequence[int]],
        responses_ids: Sequence[Sequence[Sequence[int]]],
    ) -> list[float]:
        from modpo.forward.logprobs import logps_by_group

        packing = self.experiment.training.packing
        return [x for group in logps_by_group(model, prompts_ids, responses_ids, packing=packing) for x in group]

    def _audit_ratios(self, policy: Policy, model: PreTrainedModel | PeftModel) -> list[list[float]]:
        """log pi - log pi_ref of the answers that are audited."""
        if self.audited is None or policy.folder is None:
            return []
        return self._ratios(model, self.audited.dataset())

    def _ratios(self, model: PreTrainedModel | PeftModel, data: Any) -> list[list[float]]:
        """log pi - log pi_ref of scored responses, by prompt."""
        flat = iter(self._logps(model, data["prompt_ids"][:], data["responses_ids"][:]))
        return [[next(flat) - ref for ref in ref_logps] for ref_logps in data["ref_logps"]]

    @cached_property
    def _agreement_columns(self) -> dict[str, Any]:
        if self.scored is None:
            return {}
        unscored = [name for name in self.experiment.objectives if name not in self.rewards]
        return {name: self.scored.rewards.get(name) or self.scored.pairs[name] for name in unscored}

    def _agreements(self, policy: Policy, model: PreTrainedModel | PeftModel) -> dict[str, list[float]]:
        if self.scored is None:
            return {}
        if policy.folder is None:  # the reference prefers no answer to another; read twice, rounding would decide
            return {name: [0.5] * len(self.prompts) for name in self._agreement_columns}
        data = self.scored.dataset()
        ratios = self._ratios(model, data)
        return {name: self._agreement(name, data, ratios) for name in self._agreement_columns}

    def _agreement(self, name: str, data: Any, ratios: Sequence[Sequence[float]]) -> list[float]:
        """Share of a prompt's held-out pairs that the policy orders as the objective does, one number a prompt.

        The policy prefers the response with the larger log pi / pi_ref; the reference prefers none: 1/2. An objective
        with pairs is compared on them, one with numbers in the data on every two responses whose numbers differ.
        """
        objective = self.experiment.objectives[name]
        column = REWARD_PREFIX + name
        shares = []
        for row, ratio in enumerate(ratios):
            if column in data.column_names:
                pairs = _ordered_pairs([_signed(score, objective.sign) for score in data[row][column]])
            else:
                pairs = data[row][PAIRS_PREFIX + name]
            # log-probs of one model read twice differ by rounding: a difference that small is a tie
            wins = [_win(ratio[chosen] - ratio[rejected]) for chosen, rejected in pairs]
            shares.append(float(np.mean(wins)) if wins else 0.5)
        return shares


def _win(difference: float, rounding: float = 1e-6) -> float:
    return 0.5 if abs(difference) <= rounding else float(difference > 0)


def _signed(score: float | None, sign: float) -> float | None:
    return None if score is None else sign * score


def _ordered_pairs(scores: Sequence[float | None]) -> list[tuple[int, int]]:
    """Every two responses whose numbers are there and differ, the better one first."""
    known = [(i, score) for i, score in enumerate(scores) if score is not None]
    return [(a, b) for a, x in known for b, y in known if x > y]


@contextmanager
def _as_reference(model: Any, reference: ReferenceModel) -> Iterator[Any]:
    """The reference policy: the model without its adapter, or, for a model of its own, the base."""
    disable: Callable[[], Any] | None = getattr(model, "disable_adapter", None)
    if disable is None:
        yield reference.model
    else:
        with disable():
            yield model


def reference_policy() -> Policy:
    """The policy from which every point starts."""
    return Policy(REFERENCE, None, None, {})
