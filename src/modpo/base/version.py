"""The version of the package."""

from __future__ import annotations

from importlib import metadata


def installed_version() -> str:
    try:
        return metadata.version("modpo")
    except metadata.PackageNotFoundError:  # a source tree on the path, not installed
        return "0+unknown"
