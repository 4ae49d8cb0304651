"""Where rows come from: a local file, or a data set on the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from modpo.base.errors import InputError, Problem
from modpo.base.text import first_line
from modpo.data.json_rows import JsonRows
from modpo.data.rows import JSON_SUFFIXES, READABLE, ParquetRows, Rows, rows_from_dataset


def open_rows(
    path: str | os.PathLike[str], *, split: str = "train", name: str | None = None, data_dir: str | None = None
) -> Rows:
    """Open a local file, or the split of a data set on the Hub, whichever the path means.

    Args:
        path: a .jsonl, .json, .parquet, .jsonl.gz or .json.gz file, or a Hub name such as "owner/name".
        split: of a Hub data set.
        name: the configuration of a Hub data set that has several.
        data_dir: the folder in a Hub data set's repository.

    Raises:
        InputError: nothing there, a folder, an unknown kind of file, no rows, a damaged file, the Hub's no.
    """
    source = os.fspath(path)
    if Path(source).is_dir():
        raise InputError(Problem(source, "", "is a folder", READABLE))
    if not Path(source).exists() and not source.endswith((*JSON_SUFFIXES, ".parquet")):
        rows = _open_hub(source, {"name": name, "data_dir": data_dir, "split": split})
    elif not Path(source).exists():
        raise InputError(Problem(source, "", f"no such file in {Path.cwd()}", "check the path"))
    else:
        rows = _open_file(source)
    if len(rows) == 0:
        raise InputError(Problem(source, "", "holds no rows", "give at least one row"))
    return rows


def _open_file(path: str) -> Rows:
    try:
        if path.endswith(".parquet"):
            return ParquetRows(path)
        if path.endswith(JSON_SUFFIXES):
            return JsonRows(path)
    except PermissionError:
        raise InputError(Problem(path, "", "may not be read", "give yourself permission to read it")) from None
    raise InputError(Problem(path, "", f"unknown kind of file {Path(path).suffix!r}", READABLE))


def _open_hub(path: str, options: dict[str, str | None]) -> Rows:
    """Rows of a data set on the Hub; `options` are the `name`, `data_dir` and `split` of `datasets.load_dataset`."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.startswith("."):
        raise InputError(Problem(path, "", f"no such file in {Path.cwd()}", "check the path"))
    import datasets

    try:
        dataset = _load_hub(path, options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        asked = ", ".join(f"{option} {value!r}" for option, value in options.items() if value is not None)
        looked = f"{Path.cwd() / path}, {datasets.config.HF_ENDPOINT}, {datasets.config.HF_DATASETS_CACHE}"
        problem = f"no such file or data set ({asked}); looked in {looked}: {first_line(error)}"
        fix = "check the path, the name and the split, go online, or give a local file"
        raise InputError(Problem(path, "", problem, fix)) from None
    return rows_from_dataset(dataset, path)


def _load_hub(path: str, options: dict[str, str | None]) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, **options)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
    # The repository holds a program that makes the rows, which is not run here. The Hub has run it, and keeps the rows
    # on a branch of their own, in a folder for each configuration.
    folder = options["data_dir"] or options["name"]
    return datasets.load_dataset(path, data_dir=folder, split=options["split"], revision="refs/convert/parquet")
