"""The ledger of a sweep: what every stage took, from scratch, as `ledger.json`.

What was found in a cache or kept from an earlier run counts with what it took when it was made. A stage that several
points share stands there once. Measuring is no cost of a method: it stands there and is not added up.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from modpo.base.costs import NOTHING, Cost
from modpo.base.decode import decode
from modpo.base.files import read_sealed, write_sealed
from modpo.base.progress import duration

FILE = "ledger.json"
SCHEMA = 1


@dataclass(frozen=True)
class Entry:
    """A stage and what it took."""

    stage: str  # "sft", "reward kind", "reference log-probs", "train kind0.5-brief0.5", "measure ..."
    cost: Cost
    method: str | None = None  # whose training it is; None: shared by all methods
    counts: bool = True  # measuring does not


@dataclass(frozen=True)
class Ledger:
    """Everything `ledger.json` says."""

    method: str
    models: int  # points that came of it
    entries: list[Entry]
    unknown: list[str] = field(default_factory=list)  # stages whose cost was not written down, by older versions

    @property
    def total(self) -> Cost:
        """What the front took from scratch."""
        return sum((entry.cost for entry in self.entries if entry.counts), NOTHING)

    @property
    def device_hours(self) -> float:
        """Of the whole front."""
        return sum(entry.cost.device_hours for entry in self.entries if entry.counts)


def cost_summary(ledger: Ledger) -> str:
    """The total in a few words."""
    total = ledger.total
    generated = f", {total.tokens_generated:,} tokens generated" if total.tokens_generated else ""
    return (
        f"{duration(total.seconds)}, {total.tokens:,} tokens trained on{generated}, "
        f"{ledger.device_hours / ledger.models:.3g} device-hours a model"
    )


# --- on disk ------------------------------------------------------------------------------------------------


def write_ledger(ledger: Ledger, folder: Path) -> None:
    """Write `ledger.json` into a sweep's folder."""
    write_sealed(
        folder / FILE,
        {
            "schema": SCHEMA,
            **asdict(ledger),
            "entries": [{**asdict(entry), "device_hours": entry.cost.device_hours} for entry in ledger.entries],
            "total": {**ledger.total.written(), "device_hours": ledger.device_hours},
            "device_hours_per_model": ledger.device_hours / ledger.models,
        },
    )


def read_ledger(folder: Path) -> Ledger | None:
    """The ledger of a sweep's folder; None where there is none that this version can read, or it was changed."""
    with suppress(OSError, ValueError):
        read = read_sealed(folder / FILE)
        ledger: Ledger = decode(Ledger, read)
        return ledger if read.get("schema") == SCHEMA and ledger.models > 0 else None
    return None
