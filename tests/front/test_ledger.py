"""The ledger of a sweep is read back as it was written, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from modpo.base.costs import Cost
from modpo.front.ledger import FILE, Entry, Ledger, cost_summary, read_ledger, write_ledger


def test_a_ledger_is_read_back(tmp_path: Path) -> None:
    """1 h on 2 devices and half an hour on one, for 2 models: 1.25 device-hours each."""
    entries = [
        Entry("sft", Cost(3600.0, 5, devices=2)),
        Entry("train a", Cost(1800.0, 10, 7), "modpo"),
        Entry("measure a", Cost(9999.0, 0), "modpo", counts=False),
    ]
    ledger = Ledger("modpo", 2, entries, ["tokens"])
    write_ledger(ledger, tmp_path)
    assert read_ledger(tmp_path) == ledger
    assert json.loads((tmp_path / FILE).read_text())["device_hours_per_model"] == 1.25
    assert cost_summary(ledger) == "1 h 30 min, 15 tokens trained on, 7 tokens generated, 1.25 device-hours a model"


def test_a_changed_ledger_is_none(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) is None
    write_ledger(Ledger("modpo", 1, [Entry("train a", Cost(1.0, 10))]), tmp_path)
    path = tmp_path / FILE
    path.write_text(path.read_text().replace('"tokens": 10', '"tokens": 11'))
    assert read_ledger(tmp_path) is None
