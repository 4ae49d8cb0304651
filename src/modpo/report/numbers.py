"""Numbers as a reader wants them."""

from __future__ import annotations

import math
from typing import Any


def number(value: float) -> str:
    """Three significant digits, without exponents in the everyday range: `0.512`, `−48.3`, `12,345`."""
    if value == 0 or 1e-3 <= abs(value) < 999.5:
        return _minus(f"{value:.3g}")
    return _minus(f"{value:,.0f}" if 999.5 <= abs(value) < 1e9 else f"{value:.2e}")


def _minus(digits: str) -> str:
    return digits.replace("-", "−")


def interval_text(mean: float, low: float, high: float) -> str:
    """`0.51 [0.48, 0.55]`: as many decimals as show two digits of the interval's width."""
    width = high - low
    if not 0 < width < math.inf:
        return f"{number(mean)} [{number(low)}, {number(high)}]"
    decimals = min(max(1 - math.floor(math.log10(width)), 0), 12)
    return _minus(f"{mean:,.{decimals}f} [{low:,.{decimals}f}, {high:,.{decimals}f}]")


def percent(share: Any) -> str:
    """`95 %`; "bootstrap" when the share is not known."""
    return f"{share * 100:g} %" if isinstance(share, int | float) and 0 < share < 1 else "bootstrap"
