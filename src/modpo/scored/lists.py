"""Columns of lists, one list a prompt, as flat NumPy arrays: what is asked of all rows is asked of them at once.

Columns are `pyarrow` arrays, chunked or not. No row becomes a Python object, so a million rows take milliseconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def lengths(lists: Any) -> np.ndarray:
    """How long each list is, (rows,); a null is empty."""
    from pyarrow import compute, types

    if types.is_null(lists.type):
        return np.zeros(len(lists), dtype=np.int64)
    found: np.ndarray = compute.fill_null(compute.list_value_length(lists), 0).to_numpy().astype(np.int64)
    return found


def flat(lists: Any) -> Any:
    """The lists one after the other, as a `pyarrow` array."""
    from pyarrow import chunked_array, compute, null, types

    return chunked_array([], null()) if types.is_null(lists.type) else compute.list_flatten(lists)


def starts(sizes: np.ndarray) -> np.ndarray:
    """Where each list begins in the flat array, (rows,)."""
    return np.cumsum(sizes) - sizes


def sums(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The sum of each list, (rows,); of an empty one 0."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    begin = starts(sizes)
    found: np.ndarray = total[begin + sizes] - total[begin]
    return found


def largest(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The largest number of each list, (rows,); no list is empty."""
    return np.maximum.reduceat(values, starts(sizes)) if len(sizes) else np.zeros(0, dtype=np.int64)


def pairs_of_rows(lists: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of lists of [chosen, rejected]: all of these, (P, 2), and the row of each, (P,)."""
    sizes = lengths(lists)
    if not sizes.any():
        return np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.int64)
    pairs = flat(flat(lists)).to_numpy().astype(np.int64).reshape(-1, 2)
    return pairs, np.repeat(np.arange(len(sizes)), sizes)


def is_first(first_equal: Any) -> np.ndarray:
    """Of each response whether no earlier one to its prompt has the same tokens, (responses,) bool.

    Args:
        first_equal: of each response the first one with the same tokens, by prompt.
    """
    sizes = lengths(first_equal)
    places = np.arange(int(sizes.sum())) - np.repeat(starts(sizes), sizes)
    found: np.ndarray = flat(first_equal).to_numpy() == places
    return found


def longest_with_response(prompt_ids: Any, responses_ids: Any) -> np.ndarray:
    """Tokens of each prompt with its longest response, (rows,); there is one at least."""
    return lengths(prompt_ids) + largest(lengths(flat(responses_ids)), lengths(responses_ids))


def highest_id(prompt_ids: Any, responses_ids: Any) -> np.ndarray:
    """The highest id of each prompt and its responses, (rows,); none of them is empty."""
    of_prompts = largest(flat(prompt_ids).to_numpy(), lengths(prompt_ids))
    responses = flat(responses_ids)
    of_responses = largest(flat(responses).to_numpy(), lengths(responses))
    return np.maximum(of_prompts, largest(of_responses, lengths(responses_ids)))
