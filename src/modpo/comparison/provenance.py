"""Which code made a result."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from modpo.base.version import installed_version


def source_version() -> str:
    """The git commit of the checkout that the package runs from, `-dirty` if it was edited since; else its version."""
    package = Path(__file__).parents[1]
    root, git = package.parents[1], shutil.which("git")
    if git is not None and package.parent.name == "src" and (root / ".git").exists():
        command = [git, "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return installed_version()
