"""Says how many cases were tried."""

from __future__ import annotations

from typing import Any

from tests.fuzz.cases import Count


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if Count.tried:
        said = f"{Count.tried} cases: {Count.tried - Count.refused} accepted, {Count.refused} refused in one line each"
        terminalreporter.write_sep("=", f"fuzz: {said}")
