"""A comparison on disk: `comparison.json`, `comparison.csv`, `comparison.png` and `comparison.md`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modpo.base.csv_text import csv_text
from modpo.base.files import new_file, write_json
from modpo.base.version import installed_version
from modpo.comparison.picture import picture
from modpo.comparison.result import Comparison
from modpo.comparison.table import markdown

SCHEMA = 2  # 1 measured hypervolumes from the reference policy's own scores
FILE = "comparison.json"


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the four files; each appears whole or not at all."""
    commit = _source_version()
    contents = {
        "comparison.csv": csv_text(list(_rows(comparison))).encode(),
        "comparison.md": markdown(comparison, commit).encode(),
        "comparison.png": picture(comparison),
    }
    for name, content in contents.items():
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


def _source_version() -> str:
    """The git commit of the checkout that the package runs from, `-dirty` if it was edited since; else its version."""
    package = Path(__file__).parents[1]
    root, git = package.parents[1], shutil.which("git")
    if git is not None and package.parent.name == "src" and (root / ".git").exists():
        command = [git, "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return installed_version()
