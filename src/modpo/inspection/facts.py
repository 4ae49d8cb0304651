"""What an experiment would train on, what its rewards look like and what it would cost: all that can be known without
training and without reading the model's weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from modpo.base.errors import InputError, Problem
from modpo.base.progress import Progress
from modpo.data.groups import PromptGroups
from modpo.data.loading import load_groups
from modpo.data.prompt_group import Pair
from modpo.data.text_notes import COUNTED, text_notes
from modpo.data.tokens import NO_LIMIT, TokenizedGroup, require_usable, tokenize_group, tokenize_groups
from modpo.evaluation.evaluate import questions_of
from modpo.evaluation.scorers import scorer_warnings
from modpo.experiment.primary import Margins, choose
from modpo.experiment.sections import Experiment, resolved
from modpo.forward.packing import pack
from modpo.forward.packing_choice import expected_packing
from modpo.inspection.cost import expected_cost
from modpo.inspection.inspection import Example, Inspection
from modpo.inspection.reward_statistics import (
    correlations,
    margin_rewards,
    reward_statistics,
    reward_warnings,
)
from modpo.inspection.token_statistics import lengths_of, reading, token_statistics
from modpo.models.dtype_choice import with_dtype
from modpo.models.positions import LOWER_MAX_LENGTH, longest_of, place_in, require_readable
from modpo.models.reference import ReferenceModel
from modpo.rewards.batch import Reward, reward_batch
from modpo.rewards.loading import probe, quick_rewards
from modpo.scored.equal_tokens import EqualTokens, differing, first_equal
from modpo.scored.labels import draw_bradley_terry
from modpo.scored.of_experiment import load_ready_rewards
from modpo.scored.scorer import GROUPS_PER_REWARD_CALL

MOST_GROUPS = 2000  # prompt groups that are tokenized and scored; of more, a sample
BOUNDARY_TOKENS = 3  # shown one by one on either side of the prompt's end


def inspect_experiment(experiment: Experiment) -> None:
    """Show an experiment on standard output: data, tokens, objectives, cost. Nothing is trained, and nothing written
    but a model that has to be fetched.

    Raises:
        InputError, NumericError: what scoring the data would raise, over the rows that are looked at.
    """
    from modpo.inspection.tables import show

    show(look(experiment))


def look(experiment: Experiment) -> Inspection:
    """Gather what `inspect_experiment` shows."""
    _require_sampled(experiment)
    train, held_out = load_groups(experiment)
    rewards = quick_rewards(experiment.objectives, load_ready_rewards(experiment))
    reference = ReferenceModel.of(experiment, writes=False)
    experiment = expected_packing(experiment, reference)
    indices = sample_indices(len(train), experiment.seed)
    tokens = _tokenize(experiment, train, indices, reference)
    require_readable(place_in(train.select(indices)), map(longest_of, tokens), reference.positions, LOWER_MAX_LENGTH)
    questions_of(experiment, reference, held_out)
    scores = {name: _score(train, indices, name, reward) for name, reward in rewards.items()}
    margins = {name: margin_rewards(experiment.objectives[name], scores[name]) for name in scores}
    equal = EqualTokens.of_tokenized(train.select(indices), tokens, experiment.label_sets)
    firsts = [first_equal(group.responses_ids) for group in tokens]
    labels = _labels(experiment, train, indices, margins, firsts)
    pairs = _pairs(experiment, labels, margins, firsts)
    lengths = [lengths_of(group) for group in tokens]
    signs = {name: experiment.objectives[name].sign for name in scores}
    statistics = {name: reward_statistics(scores[name], labels.get(name, pairs), signs[name]) for name in scores}
    found = _data_warnings(experiment, train, pairs)
    if warning := equal.warning(reference.tokenizer, experiment.data.max_length):
        found.append(warning)
    counts = {name: [int(getattr(group, name)) for group in tokens] for name in COUNTED}
    found += text_notes(counts, train.select(indices), reference.tokenizer)
    found += reward_warnings(experiment.objectives, statistics, _in_loss(experiment))
    found += scorer_warnings(resolved(experiment))
    experiment = with_dtype(experiment, writes=False)
    first = next((i for i, paired in enumerate(pairs) if paired), 0)
    return Inspection(
        experiment=experiment,
        train=train,
        held_out=held_out,
        sampled=len(indices),
        tokens=token_statistics(tokens),
        uncut_length=_uncut_length(train, indices, tokens, reference),
        reading=reading(lengths, pairs, experiment.training.per_device_train_batch_size, experiment.seed),
        example=_example(train[int(indices[first])].where, tokens[first], pairs[first], reference),
        rewards=statistics,
        correlations=correlations(scores, signs),
        cost=expected_cost(experiment, reference, lengths, pairs, groups=len(train)) if any(pairs) else None,
        warnings=found,
    )


def _require_sampled(experiment: Experiment) -> None:
    path = experiment.data.path
    if experiment.sample is not None and not Path(path).is_file():
        fix = "sample the answers first: the reference policy answers the prompts"
        raise InputError(Problem(path, "", "the answers to train on are not there yet", fix))


def sample_indices(groups: int, seed: int) -> np.ndarray:
    """At most `MOST_GROUPS` of so many groups, without repetition and in their order."""
    if groups <= MOST_GROUPS:
        return np.arange(groups)
    return np.sort(np.random.default_rng(seed).choice(groups, MOST_GROUPS, replace=False))


# --- tokens and scores --------------------------------------------------------------------------------------


def _tokenize(
    experiment: Experiment, groups: PromptGroups, indices: np.ndarray, reference: ReferenceModel
) -> list[TokenizedGroup]:
    """The sampled groups as training reads them, or the problems of up to 20 rows."""
    tokenizer, data = reference.tokenizer, experiment.data
    kwargs, where = groups.template_kwargs, experiment.where("model")
    require_usable(tokenizer, conversational=groups.conversational, where=where, template_kwargs=kwargs)
    with Progress("tokens", len(indices), "prompts") as progress:
        return tokenize_groups(
            (groups[i] for i in progress.over(indices.tolist())),
            tokenizer,
            max_length=data.max_length,
            max_prompt_length=data.max_prompt_length,
        )


def _uncut_length(
    groups: PromptGroups, indices: np.ndarray, tokens: Sequence[TokenizedGroup], reference: ReferenceModel
) -> int:
    """The longest prompt with one response as it was before truncation, tokens."""
    longest = 0
    for i, group in zip(indices.tolist(), tokens, strict=True):
        if group.prompt_truncated or group.responses_truncated:
            group = tokenize_group(groups[i], reference.tokenizer, max_length=NO_LIMIT)
        prompt, responses = lengths_of(group)
        longest = max(longest, prompt + max(responses))
    return longest


def _score(groups: PromptGroups, indices: np.ndarray, name: str, reward: Reward) -> list[list[float | None]]:
    """One objective's raw rewards of the sampled groups."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant reward is reported below, of all rows and not of the first few
        probe(reward, reward_batch(groups, indices[:4].tolist()))
    scores: list[list[float | None]] = []
    with Progress(f"reward {name}", len(indices), "prompts") as progress:
        for start in range(0, len(indices), GROUPS_PER_REWARD_CALL):
            part = indices[start : start + GROUPS_PER_REWARD_CALL].tolist()
            flat = iter(reward(reward_batch(groups, part)))
            scores += [[next(flat) for _ in groups[i].responses] for i in part]
            progress.advance(len(part))
    return scores


def _labels(
    experiment: Experiment,
    groups: PromptGroups,
    indices: np.ndarray,
    margins: Mapping[str, Sequence[Margins]],
    firsts: Sequence[Sequence[int]],
) -> dict[str, list[Sequence[Pair]]]:
    """Each objective's own pairs: the data's, or the draws from its reward as training would make them.

    Args:
        firsts: of each response the first one with the same tokens: pairs of two such are dropped.
    """
    read = [groups[i] for i in indices.tolist()]
    labels: dict[str, list[Sequence[Pair]]] = {
        name: [differing(group.pairs.get(label_set, ()), first) for group, first in zip(read, firsts, strict=True)]
        for name, label_set in experiment.label_sets.items()
    }
    for name in experiment.drawn:
        rows = zip(indices.tolist(), margins.get(name, []), strict=False)
        drawn = [draw_bradley_terry(row, seed=i) for i, row in rows]
        labels[name] = [differing(pairs, first) for pairs, first in zip(drawn, firsts, strict=False)]
    return labels


def _pairs(
    experiment: Experiment,
    labels: Mapping[str, Sequence[Sequence[Pair]]],
    margins: Mapping[str, Sequence[Margins]],
    firsts: Sequence[Sequence[int]],
) -> list[Sequence[Pair]]:
    """The pairs that each group is trained on at the vector in the middle of the sweep, or at equal weights.

    A reward that is not scored here counts as known, and as the same for all.
    """
    vectors, names = experiment.sweep.weights, list(experiment.objectives)
    weights = vectors[len(vectors) // 2] if vectors else {name: 1 / len(names) for name in names}
    rewarded = [name for name in names if experiment.objectives[name].reward is not None]
    return [
        choose(
            weights,
            {name: labels[name][row] for name in labels if labels[name]},
            {name: margins[name][row] if name in margins else [0.0] * len(first) for name in rewarded},
            len(first),
            experiment.training.objective,
            experiment.smallest_primary_weight,
            first,
        ).pairs
        for row, first in enumerate(firsts)
    ]


def _example(where: str, tokens: TokenizedGroup, pairs: Sequence[Pair], reference: ReferenceModel) -> Example:
    tokenizer = reference.tokenizer
    special = set(tokenizer.all_special_ids)
    return Example(
        where=where,
        prompt=tokenizer.decode(tokens.prompt_ids),
        responses=[tokenizer.decode(ids) for ids in tokens.responses_ids],
        ends=[tokenizer.decode(ids[-1:]) if ids[-1] in special else "" for ids in tokens.responses_ids],
        before=[tokenizer.decode([token]) for token in tokens.prompt_ids[-BOUNDARY_TOKENS:]],
        after=[tokenizer.decode([token]) for token in tokens.responses_ids[0][:BOUNDARY_TOKENS]],
        span=pack([tokens.prompt_ids], [tokens.responses_ids]).layout.groups[0],
        pairs=pairs,
    )


# --- warnings -----------------------------------------------------------------------------------------------


def _in_loss(experiment: Experiment) -> list[str]:
    """Objectives whose reward enters training: not the only one with labels, where it enters by these alone."""
    by_labels = [] if experiment.smallest_primary_weight > 0 else list(experiment.label_sets)
    return [n for n, o in experiment.objectives.items() if o.reward is not None and [n] != by_labels]


def _data_warnings(experiment: Experiment, train: PromptGroups, pairs: Sequence[Sequence[Pair]]) -> list[str]:
    found = list(train.warnings)
    with_pairs = sum(bool(paired) for paired in pairs)
    batch = experiment.training.per_device_train_batch_size
    if not with_pairs:
        found.append("no pair to train on in the prompts looked at: their cost is not estimated")
    elif with_pairs < batch:
        found.append(f"{with_pairs} prompts with pairs are fewer than one batch of {batch}")
    return found
