"""What one pass over the rows finds, kept: which rows make which group, and what a user should know of them.

    <cache>/rows/<key>/index.npz, manifest.json

The key is a hash of the rows' content and of all that decides how they are read. Who starts again on the same rows
reads none of them. Rows that are refused leave nothing behind.
What a function of the user's lays out is kept only while the process lives: what the function imports may have changed
at the next start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from modpo.base.artifact import Artifact
from modpo.base.files import locked, remove_leftovers, sha256_json
from modpo.base.version import installed_version
from modpo.data.formats import RULES, is_function
from modpo.data.group_index import Index
from modpo.data.row_reader import RowReader

CHECKS = 1  # raised whenever rows are refused that were not, or an index says more of the same rows
FILE = "index.npz"
MOST_HELD = 4  # indices that a process remembers
ARRAYS = ("rows", "bounds", "keys", "labelled")  # of an index, as they are written

Found = tuple[Index, Counter[str]]  # of rows, and how many of them a user should know of, by what is the matter


@dataclass(frozen=True)
class KeptIndex:
    """Where the index of some rows is kept.

    Args:
        writes: whether it is kept on disk where it is not yet; else for as long as the process lives.
    """

    reader: RowReader
    cache_dir: Path
    writes: bool = False

    def read_or_find(self, find: Callable[[], Found]) -> Found:
        """The index, from where it is kept, or from the rows.

        Raises:
            IntegrityError: what is kept was changed.
        """
        found = _HELD.get(self._key) or self._read() or find()
        if self._key not in _HELD and len(_HELD) >= MOST_HELD:
            _HELD.pop(next(iter(_HELD)))
        _HELD[self._key] = found
        if self.writes and self._lasts:
            self._write(*found)
        return found

    @property
    def _lasts(self) -> bool:
        return not is_function(self.reader.layout.name)

    @cached_property
    def _parts(self) -> dict[str, Any]:
        reader = self.reader
        return {
            "rows": reader.rows.fingerprint,
            "parsed_as": reader.rows.parsed_as,
            "layout": reader.layout.identity,
            "rules": [RULES, CHECKS, installed_version()],
            "columns": list(reader.columns),
            "answered": reader.answered,
            "skip_empty": reader.skip_empty,
            "template_kwargs": reader.template_kwargs,
        }

    @cached_property
    def _key(self) -> str:
        return sha256_json(self._parts)

    @property
    def _artifact(self) -> Artifact:
        return Artifact(self.cache_dir / "rows" / self._key[:24], self._parts)

    def _read(self) -> Found | None:
        manifest = self._artifact.there() if self._lasts else None
        if manifest is None:
            return None
        try:
            with np.load(self._artifact.folder / FILE) as file:
                arrays = {name: file[name] for name in ARRAYS}
                tallies = {name: file[f"tallies.{name}"] for name in manifest["tallies"]}
            about = {name: manifest[name] for name in ("conversational", "label_sets")}
            return Index(**arrays, **about, tallies=tallies), Counter(manifest["counted"])
        except (KeyError, OSError, ValueError):  # whole, but not what is written here: it is made anew
            return None

    def _write(self, index: Index, counted: Mapping[str, int]) -> None:
        artifact, shelf = self._artifact, self.cache_dir / "rows"
        if self._read() is not None:
            return
        with locked(shelf, wait=True):
            remove_leftovers(shelf)
            if self._read() is not None:
                return
            about = {"tallies": list(index.tallies), "label_sets": index.label_sets, "counted": dict(counted)}
            with artifact.making(conversational=index.conversational, **about) as new:
                np.savez(new.folder / FILE, **_arrays(index))


_HELD: dict[str, Found] = {}  # by key; a run checks its rows before it trains on them


def _arrays(index: Index) -> dict[str, Any]:
    tallies = {f"tallies.{name}": counts for name, counts in index.tallies.items()}
    return {name: getattr(index, name) for name in ARRAYS} | tallies
