"""The held-out prompts, and answers to them: sampled from a policy, or chosen among answers of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from modpo.base.simplex import Weights
from modpo.data.groups import PromptGroups
from modpo.data.tokens import answer_text, tokenize_prompt
from modpo.data.tokens import identity as tokenizer_identity
from modpo.experiment.sections import EvaluationSection
from modpo.forward.policy import Policy
from modpo.forward.sampled import RULES, SamplingSettings, logps_of
from modpo.models.positions import require_answerable
from modpo.models.reference import ReferenceModel, answer_ends, answer_turn
from modpo.policies.best_of_n import BestOfN
from modpo.rewards.batch import Reward, answer_batch, check_scores

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Settings that decide no answer and no score of one.
NOT_OF_ANSWERS = ("bootstrap", "confidence", "report_prompts", "rewards", "seed")


@dataclass(frozen=True)
class Answers:
    """M answers to held-out prompts."""

    prompt_indices: list[int]
    texts: list[str]
    log_ratios: list[float]  # log pi - log pi_ref of each, nats: their mean estimates KL(pi || pi_ref)
    tokens: list[int]  # of each
    sampled_tokens: list[int] | None = None  # of all that each was chosen from

    @classmethod
    def read(cls, lines: Sequence[Mapping[str, Any]]) -> Answers:
        """From the lines of responses.jsonl."""
        keys = ("prompt_index", "response", "kl", "tokens")
        return cls(*([line[key] for line in lines] for key in keys))

    def chosen(self, best: BestOfN, margins: Mapping[str, Sequence[float]]) -> Answers:
        """Of every n of these M answers the best one, (M / n).

        Args:
            margins: calibrated rewards with their direction, (M,) each, by objective.
        """
        chosen, n = best.choose(margins), best.n
        return Answers(
            [self.prompt_indices[i] for i in chosen],
            [self.texts[i] for i in chosen],
            [best.kl_bound] * len(chosen),  # of one answer it is not known
            [self.tokens[i] for i in chosen],
            [sum(self.tokens[start : start + n]) for start in range(0, len(self.texts), n)],
        )

    def lines(
        self, name: str, weights: Weights | None, prompts: PromptGroups, rewards: Mapping[str, Sequence[float]]
    ) -> list[dict[str, Any]]:
        """The lines of responses.jsonl.

        Args:
            rewards: (M,) each, by objective.
        """
        return [
            {
                "policy": name,
                "weights": weights,
                "prompt_index": i,
                "prompt": prompts[i].prompt,
                "response": self.texts[m],
                "rewards": {objective: values[m] for objective, values in rewards.items()},
                "kl": self.log_ratios[m],
                "tokens": self.tokens[m],
                **({"sampled_tokens": self.sampled_tokens[m]} if self.sampled_tokens else {}),
            }
            for m, i in enumerate(self.prompt_indices)
        ]


@dataclass(frozen=True)
class Questions:
    """N held-out prompts and how they are answered, the same for every policy."""

    reference: ReferenceModel
    prompts: PromptGroups
    settings: EvaluationSection
    max_prompt_length: int  # tokens; a longer prompt is cut as in training
    packing: bool

    def parts(self) -> dict[str, Any]:
        """What decides the answers of a policy besides its own weights, by name."""
        settings = {name: value for name, value in asdict(self.settings).items() if name not in NOT_OF_ANSWERS}
        return {
            "reference": self.reference.fingerprint,
            "prompts": self.prompts.fingerprint,
            "tokenizer": tokenizer_identity(self.reference.tokenizer, 0, self.max_prompt_length),
            "ends": self.ends,
            "settings": settings,
            "seed": self.settings.seed,
            "sampling": RULES,
        }

    def times(self, n: int) -> Questions:
        """The same, with n answers for each one."""
        samples = self.settings.samples_per_prompt * n
        return replace(self, settings=replace(self.settings, samples_per_prompt=samples))

    @cached_property
    def prompts_ids(self) -> list[list[int]]:
        """What generation starts from, by prompt."""
        tokenizer, longest = self.reference.tokenizer, self.max_prompt_length
        return [tokenize_prompt(g.prompt, tokenizer, g.template_kwargs, longest=longest) for g in self.prompts]

    def require_room(self, where: str) -> None:
        """Refuse answers that could be longer, with their prompt, than the model has positions.

        Args:
            where: of `evaluation.max_new_tokens`.

        Raises:
            InputError: they could.
        """
        tokens, positions = self.settings.max_new_tokens, self.reference.positions
        if positions is not None and self.max_prompt_length + tokens > positions:
            field = "evaluation.max_new_tokens"
            require_answerable(self.prompts, self.prompts_ids, positions, tokens, where, field)

    @cached_property
    def ends(self) -> list[int]:
        """The ids that end an answer."""
        return answer_ends(self.reference, self.prompts)

    def sampled(self, policy: Policy, model: PreTrainedModel | PeftModel, name: str) -> Answers:
        """Answers of a policy, `samples_per_prompt` to each prompt, those of a prompt one after the other.

        Args:
            model: the policy, loaded. name: for the console.
        """
        from modpo.forward.generate import generate

        settings, tokenizer = self.settings, self.reference.tokenizer
        given = generate(
            model,
            tokenizer,
            self.prompts_ids,
            self._sampling,
            packing=self.packing,
            batch_size=settings.batch_size,
            label=f"answers of {name}",
        )
        answers_ids = [[one.ids for one in group] for group in given]
        label = "log-probs of the answers under the reference"
        ratios = policy.log_ratios(
            model, self.prompts_ids, answers_ids, packing=self.packing, ours=logps_of(given), label=label
        )
        turn, flat = answer_turn(self.reference, self.prompts), [ids for group in answers_ids for ids in group]
        texts = [answer_text(ids, self.ends, tokenizer, turn) for ids in flat]
        indices = [i for i, group in enumerate(given) for _ in group]
        return Answers(indices, texts, ratios, [len(ids) for ids in flat])

    @property
    def _sampling(self) -> SamplingSettings:
        settings = self.settings
        return SamplingSettings(
            self.ends, settings.max_new_tokens, settings.samples_per_prompt, settings.temperature, settings.seed
        )

    def scores(self, answers: Answers, rewards: Mapping[str, Reward]) -> dict[str, list[float]]:
        """Raw rewards of M answers, (M,) each, by objective."""
        batch = answer_batch([self.prompts[i] for i in answers.prompt_indices], answers.texts)
        return {name: check_scores(reward(batch), batch, field=name) for name, reward in rewards.items()}
