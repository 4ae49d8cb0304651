"""Where rows come from: a local file, or a data set on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modpo.base.errors import InputError, Problem
from modpo.base.text import first_line
from modpo.data.arrow_rows import ArrowRows, ParquetRows, is_saved_dataset, saved_rows
from modpo.data.csv_rows import CsvRows
from modpo.data.json_rows import JsonRows
from modpo.data.rows import READABLE, Rows, rows_from_dataset

TABLES_AS_TEXT = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
SUFFIXES = (*JSON_SUFFIXES, *TABLES_AS_TEXT, ".parquet", ".arrow")


def open_rows(
    path: str | os.PathLike[str], *, split: str = "train", name: str | None = None, data_dir: str | None = None
) -> Rows:
    """Open a local file, or the split of a data set on the Hub, whichever the path means.

    Args:
        path: a file with one of the `SUFFIXES`, a folder of `save_to_disk`, or a Hub name such as "owner/name".
        split: of a Hub data set, or of a folder with several.
        name: the configuration of a Hub data set that has several.
        data_dir: the folder in a Hub data set's repository.

    Raises:
        InputError: nothing there, another folder, an unknown kind of file, no rows, a damaged file, the Hub's no.
    """
    source = os.fspath(path)
    if Path(source).is_dir():
        if not is_saved_dataset(Path(source)):
            raise InputError(Problem(source, "", "is a folder", READABLE))
        rows = _readable(source, lambda: saved_rows(source, split))
    elif not Path(source).exists() and not source.endswith(SUFFIXES):
        rows = _open_hub(source, {"name": name, "data_dir": data_dir, "split": split})
    elif not Path(source).exists():
        raise InputError(Problem(source, "", f"no such file in {Path.cwd()}", "check the path"))
    else:
        rows = _readable(source, lambda: _open_file(source))
    if len(rows) == 0:
        raise InputError(Problem(source, "", "holds no rows", "give at least one row"))
    return rows


def _open_file(path: str) -> Rows:
    if path.endswith(".parquet"):
        return ParquetRows(path)
    if path.endswith(".arrow"):
        return ArrowRows([path], path)
    if path.endswith(TABLES_AS_TEXT):
        return CsvRows(path)
    if path.endswith(JSON_SUFFIXES):
        return JsonRows(path)
    raise InputError(Problem(path, "", f"unknown kind of file {Path(path).suffix!r}", READABLE))


def _readable(path: str, open_it: Callable[[], Rows]) -> Rows:
    try:
        return open_it()
    except PermissionError:
        raise InputError(Problem(path, "", "may not be read", "give yourself permission to read it")) from None


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
