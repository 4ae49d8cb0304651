"""Rows of pairs that several tests of the data read, and the line that refuses some."""

from __future__ import annotations

from typing import Any

import pytest

from modpo.base.errors import InputError

Row = dict[str, Any]

PAIR = {"prompt": "Name a colour.\n", "chosen": "Blue.", "rejected": "Seven."}


ROWS = [
    PAIR,
    {"prompt": "Name a fruit.\n", "chosen": "Äpfel — 🍏", "rejected": "Iron."},
    {"prompt": "Name a colour.\n", "chosen": "Red.", "rejected": "Seven."},
]


def complaint(error: pytest.ExceptionInfo[InputError]) -> str:
    return str(error.value)
