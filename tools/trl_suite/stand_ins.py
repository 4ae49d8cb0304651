"""The Hub's models and data sets that TRL's tests name, as a folder of tiny random models and of rows of our own.

<folder>/hub/models--<owner>--<name>/   a cache of the Hub, as `HF_HUB_CACHE` names one
<folder>/data/<name>/<config>/<split>.parquet
"""

from __future__ import annotations

from pathlib import Path

from tools.trl_suite.models import write_models
from tools.trl_suite.rows import write_data_sets

OWNER = "trl-internal-testing"


def hub_cache(folder: Path) -> Path:
    """Where the models are, for `HF_HUB_CACHE`."""
    return folder / "hub"


def data_set(folder: Path, name: str, config: str | None) -> Path | None:
    """The folder that stands in for a data set of the Hub, if there is one."""
    owner, _, short = name.partition("/")
    found = folder / "data" / short / (config or "")
    return found if owner == OWNER and short and found.is_dir() else None


def write_stand_ins(folder: Path) -> None:
    """Write all of them; the same numbers and rows each time."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    write_models(hub_cache(folder), OWNER)
    write_data_sets(folder / "data")
