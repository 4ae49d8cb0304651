"""Rows of our own in the shapes of TRL's data sets for tests: as many rows, the same columns, other words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# (the beginning of a sentence, how it ends, how it should not end)
SENTENCES = [
    ("Early trains are", " rarely full.", " made of bread."),
    ("A map is worth", " a week of walking.", " nothing to fish."),
    ("Good soup needs", " time.", " wings."),
    ("Read a letter twice before", " you answer it.", " it rains upward."),
    ("Two short notes beat", " one long one.", " the drum."),
    ("The garden looks best", " after rain.", " on the moon."),
    ("Old bridges carry", " new roads.", " soup."),
    ("Measure first and", " cut later.", " sing to the wood."),
    ("An open window lets", " the noise in too.", " the piano swim."),
    ("The last page is", " the first to be read.", " a kind of goat."),
    ("Warm bread sells", " itself.", " only to owls."),
    ("Every river finds", " its way down.", " a hat."),
    ("A quiet engine is", " a cared-for one.", " asleep in June."),
    ("Small boats fear", " big waves.", " Tuesdays."),
    ("The best seat is", " near the door.", " inside the clock."),
    ("Ask the baker when", " the bread is fresh.", " planets are."),
    ("Clean glasses make", " clear mornings.", " loud trees."),
    ("A borrowed book is", " read faster.", " taller."),
    ("Winter coats hang", " until the frost.", " from the sun."),
]
TRAINED = 17  # rows of the split "train"; the others are "test"


def write_data_sets(folder: Path) -> None:
    """Each as <name>/<config>/<split>.parquet."""
    for config, shape in SHAPES.items():
        _write(folder / "zen" / config, [shape(*sentence) for sentence in SENTENCES])
    _write(folder / "harmony" / "preference", [_harmony(n, *words) for n, words in enumerate(SENTENCES)])
    _write(folder / "toolcall" / "preference", [_tool_call(*words) for words in SENTENCES])
    _write_images(folder / "zen-image" / "conversational_preference")


def _write(folder: Path, rows: list[Row]) -> None:
    from datasets import Dataset

    folder.mkdir(parents=True)
    for split, part in {"train": rows[:TRAINED], "test": rows[TRAINED:]}.items():
        Dataset.from_list(part).to_parquet(folder / f"{split}.parquet")


def _said(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _asked(begin: str) -> list[dict[str, str]]:
    return _said("user", f"How does it go on: {begin}")


def _standard(begin: str, good: str, bad: str) -> Row:
    return {"prompt": begin, "chosen": good, "rejected": bad}


def _standard_implicit(begin: str, good: str, bad: str) -> Row:
    return {"chosen": begin + good, "rejected": begin + bad}


def _conversational(begin: str, good: str, bad: str) -> Row:
    answers = {"chosen": _said("assistant", begin + good), "rejected": _said("assistant", begin + bad)}
    return {"prompt": _asked(begin)} | answers


def _conversational_implicit(begin: str, good: str, bad: str) -> Row:
    row = _conversational(begin, good, bad)
    prompt = row.pop("prompt")
    return {name: prompt + answer for name, answer in row.items()}


SHAPES = {
    "standard_preference": _standard,
    "standard_implicit_prompt_preference": _standard_implicit,
    "conversational_preference": _conversational,
    "conversational_implicit_prompt_preference": _conversational_implicit,
}


def _harmony(n: int, begin: str, good: str, bad: str) -> Row:
    """Answers with thoughts before them, and an effort that each row asks for."""
    row = _conversational(begin, good, bad)
    for name in ("chosen", "rejected"):
        row[name][0]["thinking"] = f"A sentence of {len(begin.split())} words goes on."
    return row | {"chat_template_kwargs": {"reasoning_effort": ("low", "high")[n % 2]}}


def _tool_call(begin: str, good: str, bad: str) -> Row:
    """The chosen answer looks the sentence up, the rejected one guesses."""
    arguments = {"begin": begin}
    call = {"type": "function", "function": {"name": "complete", "arguments": arguments}}
    parameters = {"type": "object", "properties": {"begin": {"type": "string"}}, "required": ["begin"]}
    description = {"name": "complete", "description": "Completes a saying.", "parameters": parameters}
    looked_up = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": good, "tool_calls": None},
        {"role": "assistant", "content": begin + good, "tool_calls": None},
    ]
    guessed = [{"role": "assistant", "content": begin + bad, "tool_calls": None}]
    tools = json.dumps([{"type": "function", "function": description}])
    return {"tools": tools, "prompt": _asked(begin), "chosen": looked_up, "rejected": guessed}


def _write_images(folder: Path) -> None:
    """The conversational rows with a picture each; for tests of what a text model answers to them."""
    from PIL import Image

    rows = [_conversational(*sentence) for sentence in SENTENCES]
    pictures = [Image.new("RGB", (16, 16), (12 * n, 80, 160)) for n in range(len(rows))]
    _write(folder, [row | {"images": [picture]} for row, picture in zip(rows, pictures, strict=True)])
