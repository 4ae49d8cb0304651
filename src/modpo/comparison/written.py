"""A comparison on disk: `comparison.json`, `comparison.csv`, `comparison.png` and `comparison.md`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modpo.base.csv_text import csv_text
from modpo.base.files import new_file, write_json
from modpo.comparison.picture import picture
from modpo.comparison.provenance import source_version
from modpo.comparison.result import Comparison
from modpo.comparison.table import markdown

SCHEMA = 2  # 1 measured hypervolumes from the reference policy's own scores
FILE = "comparison.json"


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the four files; each appears whole or not at all."""
    commit = source_version()
    texts = {"comparison.csv": csv_text(list(_rows(comparison))), "comparison.md": markdown(comparison, commit)}
    for name, content in [
        *((name, text.encode()) for name, text in texts.items()),
        ("comparison.png", picture(comparison)),
    ]:
        with new_file(folder / name) as temporary:
            temporary.write_bytes(content)
    write_json(folder / FILE, {"schema": SCHEMA, **asdict(comparison), "commit": commit})


def _rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """One flat row for each method and vector."""
    for method, result in comparison.methods.items():
        for point in result.points:
            row: dict[str, Any] = {"method": method, "seeds": result.seeds}
            row |= {f"weight:{name}": point.weights.get(name, 0.0) for name in point.scores}
            for name, score in {**point.scores, "kl": point.kl}.items():
                row |= {f"{name}_{key}": value for key, value in asdict(score).items()}
            yield row
