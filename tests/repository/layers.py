"""The order of the packages."""

from __future__ import annotations

LAYERS = (  # from the ground up
    "base",
    "experiment",
    "data",
    "models",
    "forward",
    "rewards",
    "scored",
    "training",
    "front",
    "policies",
    "methods",
    "evaluation",
    "report",
    "pipeline",
    "comparison",
    "inspection",
    "quickstart",
    "cli",
)
