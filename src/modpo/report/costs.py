"""The table of costs: every stage of the ledger, and the front from scratch."""

from __future__ import annotations

from modpo.base.costs import Cost
from modpo.base.progress import duration
from modpo.front.ledger import Ledger
from modpo.report.escape import escape
from modpo.report.numbers import number
from modpo.report.sections import section, table

HEADS = ("stage", "time", "tokens trained", "tokens generated", "passes", "peak memory", "device-hours")


def cost_section(ledger: Ledger | None) -> str:
    """Nothing where a sweep has no ledger."""
    if ledger is None:
        return ""
    rows = [_row(entry.stage, entry.cost, entry.cost.device_hours, faded=not entry.counts) for entry in ledger.entries]
    rows.append(_row("the front from scratch", ledger.total, ledger.device_hours))
    head = "".join(f'<th scope="col">{text}</th>' for text in HEADS)
    note = (
        f"{number(ledger.device_hours / ledger.models)} device-hours a policy. What was in a cache counts with what it "
        "took when it was made. Measuring, in grey, is not counted."
    )
    if ledger.unknown:
        note += f" Not known, for an older version made it: {', '.join(ledger.unknown)}."
    return section("Costs", table(rows, head) + f'<p class="note">{escape(note)}</p>')


def _row(stage: str, cost: Cost, device_hours: float, *, faded: bool = False) -> str:
    cells = [
        duration(cost.seconds),
        f"{cost.tokens:,}",
        f"{cost.tokens_generated:,}",
        f"{cost.forward_passes:,} forward, {cost.backward_passes:,} backward",
        f"{cost.peak_memory_bytes / 2**30:.2f} GiB",
        number(device_hours),
    ]
    written = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    grey = ' class="faded"' if faded else ""
    return f'<tr{grey}><th scope="row">{escape(stage)}</th>{written}</tr>'
