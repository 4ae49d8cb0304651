"""The scored cache: all that training needs to know of the data, computed once.

Four kinds of columns (`columns.py`), each with its own content key, so that a new objective, another beta, another w
or another seed computes only what is really new:

    tokens     from the texts and the tokenizer
    pairs      one column per objective that has some: a label set of the data, or drawn from its reward
    reference  log pi_ref of each response, from the tokens and the base weights
    reward     one column per objective, from the texts and the scorer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from modpo.base.errors import NumericError
from modpo.base.progress import Progress, say, working
from modpo.data.groups import PromptGroups
from modpo.data.prompt_group import UNNAMED
from modpo.data.text_notes import COUNTED, text_notes
from modpo.data.tokens import TokenizedGroup, require_usable, tokenize_together
from modpo.data.tokens import identity as tokenizer_identity
from modpo.experiment.sections import (
    DRAWN,
    Objective,
)
from modpo.forward.packing_choice import packing_of
from modpo.forward.packing_needs import Needs
from modpo.models.positions import place_in, require_embedded, require_readable
from modpo.models.reference import Reference
from modpo.rewards.batch import Reward, RewardContext, reward_batch
from modpo.rewards.loading import probe
from modpo.scored.calibration import Calibration
from modpo.scored.calibrator import AnswerSettings, Calibrator
from modpo.scored.columns import Column, Row, column
from modpo.scored.data import ScoredData
from modpo.scored.equal_tokens import EqualTokens, differing, first_equal
from modpo.scored.labels import draw_bradley_terry
from modpo.scored.lists import highest_id, lengths, longest_with_response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GROUPS_PER_REWARD_CALL = 32
GROUPS_HELD = 256
TOKEN_FIELDS = 2  # raised whenever a row of tokens says more of the same ids


@dataclass(frozen=True)
class Tokens:
    """The column of tokens, opened once."""

    column: Column

    @cached_property
    def table(self) -> Any:
        """A `pyarrow.Table`, verified."""
        return self.column.table()


@dataclass(frozen=True)
class Scorer:
    """Computes what is missing of the four kinds of columns.

    Args:
        reference: the policy whose log-probs are kept; read only when some are missing.
        rewards: the scorer of each objective that has one.
        context: the cache, how many tokens of prompts and responses are read, and whether they are packed.
        label_sets: the data's label set of each objective that has one.
        objectives: direction, calibration, and whose pairs are drawn from their reward.
        answers: the answers of the reference policy on which rewards are standardised; None: the data's own responses.
        where: names a field's place in an error.
    """

    reference: Reference
    rewards: Mapping[str, Reward]
    context: RewardContext
    label_sets: Mapping[str, str]
    objectives: Mapping[str, Objective]
    answers: AnswerSettings | None = None
    where: Callable[[str], str] = str

    @working("scored data")
    def score(self, groups: PromptGroups, calibrations: Mapping[str, Calibration] | None = None) -> ScoredData:
        """All columns of `groups`, computed where they are missing.

        Args:
            calibrations: of the rewards, where they were fitted on other groups; by default they are fitted on these.
        """
        for reward in self.rewards.values():
            probe(reward, reward_batch(groups, range(min(4, len(groups)))))
        tokens = self._tokens(groups)
        self._require_readable(groups, tokens.table)
        pairs = {name: self._data_pairs(groups, label_set, tokens) for name, label_set in self.label_sets.items()}
        fits = calibrations is None  # so these are not measured on, but trained on
        if fits:
            self._equal_tokens(groups, tokens.table, pairs)
        rewards = {name: self._reward(groups, name, reward) for name, reward in self.rewards.items()}
        fitted, fitting = (
            self._calibrator.fit(groups, rewards, pairs) if calibrations is None else (dict(calibrations), {})
        )
        for name, objective in self.objectives.items():
            if objective.pairs == DRAWN:
                pairs[name] = self._drawn_pairs(objective, rewards[name], fitted[name], tokens)
        if fits and (warning := self._equal_tokens(groups, tokens.table, pairs)):
            say(f"warning: {warning}")
        for reward in self.rewards.values():
            reward.release()
        return ScoredData(tokens.column, self._reference(tokens), pairs, rewards, fitted, fitting)

    def draw_pairs(self, groups: PromptGroups, name: str) -> Column:
        """The pairs of one objective that are drawn from its reward, as `score` draws them, and nothing else."""
        rewards = {name: self._reward(groups, name, self.rewards[name])}
        fitted, _ = self._calibrator.fit(groups, rewards, {})
        self.rewards[name].release()
        return self._drawn_pairs(self.objectives[name], rewards[name], fitted[name], self._tokens(groups))

    @property
    def _calibrator(self) -> Calibrator:
        context = self.context
        return Calibrator(
            self.reference,
            self.rewards,
            context.cache_dir,
            self.objectives,
            self.answers,
            self.where,
            context.packing,
        )

    def _column(self, kind: str, identity: dict[str, Any], rows: int) -> Column:
        return column(self.context.cache_dir, kind, identity, rows)

    def _tokens(self, groups: PromptGroups) -> Tokens:
        tokenizer = self.reference.tokenizer
        longest, longest_prompt = self.context.max_length, self.context.max_prompt_length
        kwargs = groups.template_kwargs
        require_usable(tokenizer, conversational=groups.conversational, where="model", template_kwargs=kwargs)
        read = partial(tokenize_together, tokenizer=tokenizer, max_length=longest, max_prompt_length=longest_prompt)
        column_ = tokens_column(groups, tokenizer, self.context)

        def compute(indices: range) -> Iterator[Row]:
            for part in _in_parts(indices):
                yield from map(_token_row, read([groups[i] for i in part]))

        tokens = Tokens(_fill(column_, "tokens", compute))
        _say_what_was_lost(tokens.table, groups, tokenizer)
        return tokens

    def _require_readable(self, groups: PromptGroups, tokens: Any) -> None:
        """Refuse rows that the reference has no positions or no embeddings for; where none can be, none is read."""
        positions, vocabulary = self.reference.positions, self.reference.vocabulary
        ids = tokens.column("prompt_ids"), tokens.column("responses_ids")
        if positions is not None and self.context.max_length > positions:
            require_readable(place_in(groups), longest_with_response(*ids).tolist(), positions)
        if vocabulary is not None and max(self.reference.tokenizer.get_vocab().values(), default=0) >= vocabulary:
            require_embedded(place_in(groups), highest_id(*ids).tolist(), vocabulary)

    def _data_pairs(self, groups: PromptGroups, label_set: str, tokens: Tokens) -> Column:
        identity = {"source": "data", "label_set": label_set, "texts": groups.fingerprint}
        label = "pairs" if label_set == UNNAMED else f"pairs {label_set}"
        return self._pairs(identity, tokens, label, lambda i: groups[i].pairs.get(label_set, ()))

    def _pairs(
        self, identity: dict[str, Any], tokens: Tokens, label: str, pairs_of: Callable[[int], Sequence[Sequence[int]]]
    ) -> Column:
        """A column of those pairs whose responses differ as tokens."""
        first = tokens.table.column("first_equal")

        def compute(indices: range) -> Iterator[Row]:
            for i, equal in zip(indices, first.slice(indices.start, len(indices)).to_pylist(), strict=True):
                given = pairs_of(i)
                kept = differing(given, equal)
                yield {"pairs": kept, "dropped": len(given) - len(kept)}

        whole = {**identity, "tokens": tokens.column.content_hash()}
        return _fill(self._column("pairs", whole, tokens.column.rows), label, compute)

    def _equal_tokens(self, groups: PromptGroups, tokens: Any, pairs: Mapping[str, Column]) -> str | None:
        """What a user should know of responses with the same tokens; refused if nothing else is left."""
        found = EqualTokens.of_column(groups, tokens.column("first_equal"))
        for name, column_ in pairs.items():
            table = column_.table()
            kept, dropped = lengths(table.column("pairs")).sum(), table.column("dropped").to_numpy().sum()
            found.count_pairs(name, kept=int(kept), dropped=int(dropped))
        found.refuse(self.reference.tokenizer, self.context.max_length)
        return found.warning(self.reference.tokenizer, self.context.max_length)

    def _drawn_pairs(self, objective: Objective, reward: Column, calibration: Calibration, tokens: Tokens) -> Column:
        """Pairs as annotators of that reward would label them."""
        scores, sign = reward.table().column("scores"), objective.sign
        identity = {
            "source": DRAWN,
            "reward": reward.content_hash(),
            "sign": sign,
            "calibration": [calibration.factor, calibration.fill],
        }

        def draw(i: int) -> list[list[int]]:
            return draw_bradley_terry([calibration.apply(raw, sign) for raw in scores[i].as_py()], seed=i)

        return self._pairs(identity, tokens, "pairs drawn from the reward", draw)

    def _reward(self, groups: PromptGroups, name: str, reward: Reward) -> Column:
        def compute(indices: range) -> Iterator[Row]:
            for start in range(0, len(indices), GROUPS_PER_REWARD_CALL):
                part = [groups[i] for i in indices[start : start + GROUPS_PER_REWARD_CALL]]
                scores = iter(reward(reward_batch(part, range(len(part)))))
                for group in part:
                    yield {"scores": list(islice(scores, len(group.responses)))}

        identity = {"texts": groups.fingerprint, "reward": reward.identity}
        return _fill(self._column("reward", identity, len(groups)), f"reward {name}", compute)

    def _reference(self, tokens: Tokens) -> Column:
        needs = Needs(self.context.max_length)
        packing = packing_of(self.context.packing, self.reference, needs, self.context.cache_dir)

        def compute(indices: range) -> Iterator[Row]:
            from modpo.forward.frozen import logps_by_group

            model, autocast = self.reference.model, self.reference.autocast
            for part in _in_parts(indices):
                rows = tokens.table.slice(part.start, len(part))
                ids = rows.column("prompt_ids").to_pylist(), rows.column("responses_ids").to_pylist()
                for logps in logps_by_group(model, *ids, packing=packing, autocast=autocast):
                    if not np.isfinite(logps).all():
                        fix = "check the model's weights and dtype"
                        raise NumericError(f"a reference log-prob is not finite: {logps}; fix: {fix}")
                    yield {"ref_logps": logps}

        identity = {"tokens": tokens.column.content_hash(), "model": self.reference.fingerprint, "packing": packing}
        return _fill(self._column("reference", identity, tokens.column.rows), "reference log-probs", compute)


def tokens_column(groups: PromptGroups, tokenizer: PreTrainedTokenizerBase, context: RewardContext) -> Column:
    """The column of the groups' tokens in the cache, whether or not it has been computed."""
    decisive = tokenizer_identity(tokenizer, context.max_length, context.max_prompt_length)
    identity = {"texts": groups.fingerprint, "tokenizer": decisive, "fields": TOKEN_FIELDS}
    return column(context.cache_dir, "tokens", identity, len(groups))


def _fill(target: Column, label: str, compute: Callable[[range], Iterator[Row]]) -> Column:
    """Compute a column's missing shards under a progress bar; say so when there is nothing to do.

    Args:
        compute: a range of prompt groups -> one row a group, in order.
    """
    if not target.complete:
        with target.held() as missing:
            if missing:
                done = target.rows - sum(len(target.groups_of(shard)) for shard in missing)
                with Progress(label, target.rows, "prompts", done=done) as progress:
                    for shard in missing:
                        target.publish(shard, progress.over(compute(target.groups_of(shard))))
                return target
    say(f"{label}: {target.rows} of {target.rows} prompts, in the cache")
    return target


def _in_parts(indices: range) -> Iterator[range]:
    """Shards may be large: so many prompt groups are held as Python numbers at a time."""
    return (indices[start : start + GROUPS_HELD] for start in range(0, len(indices), GROUPS_HELD))


def _token_row(group: TokenizedGroup) -> Row:
    return {**vars(group), "first_equal": first_equal(group.responses_ids)}


def _say_what_was_lost(tokens: Any, groups: PromptGroups, tokenizer: PreTrainedTokenizerBase) -> None:
    """Truncation and what a chat template changes are no errors, and never silent."""
    for note in text_notes({name: tokens.column(name).to_numpy() for name in COUNTED}, groups, tokenizer):
        say(f"warning: {groups.source}: {note}")
