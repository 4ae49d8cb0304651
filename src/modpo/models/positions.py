"""How long a sequence a model can read, by its configuration and its layers.

Beyond its table of learned positions a model fails with an index error; beyond what its rotary positions were made for
it answers all the same, and badly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modpo.base.errors import InputError, Problem
from modpo.data.groups import PromptGroups
from modpo.data.tokens import TokenizedGroup

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

TABLES = ("pos", "wpe")  # a module or buffer whose name holds one of these is a table of positions
VOCABULARY_FIX = "take the model's own tokenizer, or give the model more: resize_token_embeddings, then save_pretrained"
LOWER_MAX_LENGTH = "lower `data.max_length` to {}: a longer response loses its end"
EXTENDED_BEFORE = ("llama3", "longrope", "default")  # kinds of rope whose `max_position_embeddings` is what they reach


def most_positions(model: PreTrainedModel | PeftModel) -> int | None:
    """Tokens of the longest sequence that a model has positions for; None where nothing bounds it.

    Args:
        model: in memory, or a skeleton.
    """
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(longest, int) or longest < 1:
        return None
    if getattr(config, "alibi", False) or getattr(config, "position_embedding_type", "") in ("alibi", "nope"):
        return None
    if rope := getattr(config, "rope_parameters", None):
        return max(_reach(one, longest) for one in _by_layer(rope))
    return longest if _has_table(model) else None  # state-space models and others name a length that bounds nothing


def vocabulary_size(model: PreTrainedModel | PeftModel) -> int | None:
    """How many token ids a model has embeddings for; None where they lie in no plain table."""
    size = getattr(model.get_input_embeddings(), "num_embeddings", None)
    return size if isinstance(size, int) else None


def _by_layer(rope: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings of rotary positions: one for all layers, or one for each kind of layer."""
    return [one for one in rope.values() if isinstance(one, Mapping)] or [rope]


def _reach(rope: Mapping[str, Any], longest: int) -> int:
    """Tokens that rotary positions reach. Whether `longest` counts the stretching by `factor`, files do not agree on:
    without the length before it, it does not."""
    if rope.get("rope_type", "default") in EXTENDED_BEFORE:
        return longest
    before = rope.get("original_max_position_embeddings") or longest
    return max(longest, int(before * (rope.get("factor") or 1)))


def _has_table(model: PreTrainedModel) -> bool:
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_buffers()]
    names += [name for module in model.modules() for name, value in vars(module).items() if hasattr(value, "shape")]
    return any(part in name.rpartition(".")[2] for name in names for part in TABLES)


def longest_of(group: TokenizedGroup) -> int:
    """Tokens of a prompt with its longest response."""
    return len(group.prompt_ids) + max(map(len, group.responses_ids))


def place_in(groups: PromptGroups) -> Callable[[int], str]:
    """Where each group stands, as errors name it."""
    return lambda i: groups[i].where


def require_readable(
    places: Callable[[int], str], lengths: Iterable[int], positions: int | None, fix: str = "lower `max_length` to {}"
) -> None:
    """Refuse rows that are longer, as they are read, than the model's positions reach.

    Args:
        places: where a group stands. lengths: tokens of its prompt with its longest response.
        fix: holds the place of the number.

    Raises:
        InputError: naming the first such row, and how many there are.
    """
    if positions is None:
        return
    long = [(i, n) for i, n in enumerate(lengths) if n > positions]
    if long:
        first, n = long[0]
        problem = f"takes {n} tokens, and the model has {positions} positions ({len(long)} too long)"
        raise InputError(Problem(places(first), "", problem, fix.format(positions)))


def require_embedded(places: Callable[[int], str], highest: Iterable[int], vocabulary: int) -> None:
    """Refuse rows with token ids for which the model has no embedding.

    Args:
        places: where a group stands. highest: the highest id of each group.

    Raises:
        InputError: naming the first such row.
    """
    for i, token in enumerate(highest):
        if token >= vocabulary:
            problem = f"holds the token id {token}, and the model's vocabulary ends at {vocabulary - 1}"
            raise InputError(Problem(places(i), "", problem, VOCABULARY_FIX))


def require_answerable(
    prompts: PromptGroups,
    prompts_ids: Iterable[Sequence[int]],
    positions: int | None,
    tokens: int,
    where: str,
    field: str,
) -> None:
    """Refuse answers that could be longer, with their prompt, than the model's positions reach.

    Args:
        prompts_ids: what generation starts from, by prompt. tokens: most of an answer.
        where, field: what sets `tokens`.

    Raises:
        InputError: naming the field, and the longest prompt.
    """
    if positions is None:
        return
    longest, i = max(((len(ids), -i) for i, ids in enumerate(prompts_ids)), default=(0, 0))
    if longest + tokens > positions:
        asked = f"the prompt of {prompts[-i].where} takes {longest} tokens"
        problem = f"is {tokens}, {asked}, and the model has {positions} positions"
        room = positions - longest
        fix = f"give at most {room}" if room > 0 else "leave that prompt out, or take another model"
        raise InputError(Problem(where, field, problem, fix))
