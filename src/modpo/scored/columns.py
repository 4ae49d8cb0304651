"""A column of the scored cache: one row per prompt group, in memory-mapped Arrow shards, keyed by content.

    <cache>/scored/<kind>-<key>/manifest.json, 00000.arrow, 00001.arrow, ...

The key is a hash of the column's identity: everything that changes its numbers and nothing else. A shard is published
whole and its sha256 entered into the manifest, so a killed run continues with the next shard, and a changed byte is
found when the column is opened. Two processes on one column: the second waits, and computes what is then missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modpo.base.costs import NOTHING, Cost, Meter
from modpo.base.errors import IntegrityError
from modpo.base.fault_points import reach
from modpo.base.files import (
    MANIFEST,
    is_own_file,
    locked,
    new_file,
    remove_leftovers,
    sha256_file,
    sha256_json,
    unsealed,
    write_sealed,
)
from modpo.base.progress import working

if TYPE_CHECKING:
    from datasets import Dataset
    from datasets.table import Table

SCHEMA = 2  # 2: the manifest is sealed
SHARD_GROUPS = 256  # prompt groups in a shard: what a killed run can lose, and what is held in memory
MOST_SHARDS = 64  # of a column; one of more prompt groups has larger ones: each is a file, and a line of the manifest

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One column: where it lies and what it is. Its numbers are on disk only."""

    folder: Path
    kind: str
    identity: dict[str, Any]
    rows: int
    shard_groups: int = SHARD_GROUPS

    @property
    def key(self) -> str:
        """What the column's content is called: the hash of its identity."""
        return sha256_json(self.identity)

    @property
    def shard_count(self) -> int:
        return -(-self.rows // self.shard_groups)

    def shard_path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.arrow"

    def groups_of(self, shard: int) -> range:
        return range(shard * self.shard_groups, min((shard + 1) * self.shard_groups, self.rows))

    def finished_shards(self) -> dict[str, dict[str, Any]]:
        """Shards in the manifest: name -> {"sha256", "rows", "cost"}; those of older versions have no cost."""
        manifest = self.folder / MANIFEST
        if self.folder.is_symlink():
            raise IntegrityError(f"{self.folder}: is a symlink; fix: delete it, and score again")
        if not os.path.lexists(manifest):
            return {}
        try:
            if not is_own_file(self.folder, MANIFEST):
                raise ValueError("it is no regular file")
            read = _unsealed(manifest.read_bytes().decode())
            if read["schema"] > SCHEMA:
                raise IntegrityError(
                    f"{manifest}: was written by a newer modpo; fix: update modpo, or delete {self.folder}"
                )
            if read["identity"] != json.loads(json.dumps(self.identity)):
                raise IntegrityError(f"{manifest}: describes another column; fix: delete {self.folder}")
            shards = read["shards"].items()
            return {name: {"sha256": s["sha256"], "rows": s["rows"], **_cost_of(s)} for name, s in shards}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{manifest}: cannot be read ({error}); fix: delete {self.folder}") from error

    @property
    def complete(self) -> bool:
        return not self.missing_shards()

    def missing_shards(self) -> list[int]:
        finished = self.finished_shards()
        return [s for s in range(self.shard_count) if self.shard_path(s).name not in finished]

    def fill(self, compute: Callable[[range], Iterator[Row]]) -> None:
        """Compute what is missing. `compute(range of groups)` yields one row per group, in order."""
        with self.held() as missing:
            for shard in missing:
                self.publish(shard, compute(self.groups_of(shard)))

    @contextmanager
    def held(self) -> Iterator[list[int]]:
        """Hold the column alone, after waiting for another process that does; yields the shards missing then."""
        self.finished_shards()  # refuses what is no column, before a lock is written into it
        with locked(self.folder, wait=True, progress=self._progress):
            remove_leftovers(self.folder)
            yield self.missing_shards()

    def publish(self, shard: int, rows: Iterator[Row]) -> None:
        """Write a shard, one row a group in order, and enter it into the manifest. Only while the column is held."""
        groups, path = self.groups_of(shard), self.shard_path(shard)
        with new_file(path) as temporary, Meter() as meter:
            _write_arrow(temporary, self.kind, self._counted(rows), len(groups))
            digest = sha256_file(temporary)
        reach("shard.published", path)
        entry = {"sha256": digest, "rows": len(groups), "cost": meter.cost.written()}
        about = {"schema": SCHEMA, "kind": self.kind, "identity": self.identity, "rows": self.rows}
        write_sealed(self.folder / MANIFEST, {**about, "shards": {**self.finished_shards(), path.name: entry}})

    def _progress(self) -> str:
        return f"{len(self.finished_shards())} of {self.shard_count} shards"

    def _counted(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            reach("shard.row", self.folder)
            yield row

    @working("checksums of the scored data")
    def open(self) -> Dataset:
        """The column as a memory-mapped `datasets.Dataset`, after checking every shard against its sha256."""
        return side_by_side(self)

    def table(self) -> Any:
        """As `open`, a `pyarrow.Table`."""
        return self.mapped().table

    def mapped(self) -> Table:
        """As `open`, a table as `datasets` holds one, which is sent to another process by its files' names."""
        from datasets.table import MemoryMappedTable, concat_tables

        shards, missing = self.finished_shards(), len(self.missing_shards())
        if missing:
            found = f"{self.shard_count - missing} of {self.shard_count} shards"
            raise IntegrityError(f"{self.folder}: {found}; fix: score again")
        paths = [self.shard_path(shard) for shard in range(self.shard_count)]
        for path in paths:
            if not is_own_file(self.folder, path.name) or sha256_file(path) != shards[path.name]["sha256"]:
                raise IntegrityError(f"{path}: is missing or was changed; fix: delete {self.folder} and score again")
        return concat_tables([MemoryMappedTable.from_file(str(path)) for path in paths])

    @property
    def cost(self) -> Cost | None:
        """The cost of computing it, from scratch; None where a shard does not record it."""
        entries = self.finished_shards().values()
        if any("cost" not in entry for entry in entries):
            return None
        return sum((Cost.of(entry["cost"]) for entry in entries), NOTHING)

    def content_hash(self) -> str:
        """A hash of the column's numbers, for the identity of columns that are computed from it."""
        return sha256_json({name: shard["sha256"] for name, shard in self.finished_shards().items()})


def column(cache_dir: Path, kind: str, identity: dict[str, Any], rows: int, shard_groups: int | None = None) -> Column:
    """The column of that content in the cache, whether or not it has been computed."""
    shard_groups = shard_groups or _shard_groups(rows)
    whole = {"kind": kind, "schema": SCHEMA, "shard_groups": shard_groups, "rows": rows, **identity}
    return Column(cache_dir / "scored" / f"{kind}-{sha256_json(whole)[:24]}", kind, whole, rows, shard_groups)


def side_by_side(*columns: Column, names: Sequence[Mapping[str, str]] = ()) -> Dataset:
    """Columns of the same prompt groups as one memory-mapped `datasets.Dataset`, verified.

    Args:
        names: of each column the fields that are kept, and what they are called; by default all, by their names.
    """
    from datasets import Dataset
    from datasets.table import concat_tables

    tables = [column.mapped() for column in columns]
    for i, kept in enumerate(names):
        tables[i] = tables[i].select(list(kept)).rename_columns(list(kept.values()))
    known_by = sha256_json([[column.key, column.content_hash()] for column in columns] + [list(map(dict, names))])
    return Dataset(concat_tables(tables, axis=1), fingerprint=known_by[:16])


@lru_cache(maxsize=16)
def _unsealed(text: str) -> dict[str, Any]:
    """`unsealed`, of a manifest that is asked for many times. To be read only."""
    return unsealed(text)


def _shard_groups(rows: int) -> int:
    """Prompt groups in a shard of a column of so many."""
    groups = SHARD_GROUPS
    while groups * MOST_SHARDS < rows:
        groups *= 2
    return groups


def _cost_of(entry: dict[str, Any]) -> dict[str, Any]:
    return {"cost": Cost.of(entry["cost"]).written()} if "cost" in entry else {}


def _write_arrow(path: Path, kind: str, rows: Iterator[Row], expected: int) -> None:
    import pyarrow as pa

    schema, written = _arrow_schema(kind), 0
    batches = iter(lambda: list(islice(rows, SHARD_GROUPS)), [])
    first = next(batches, [])  # a run that is killed in it leaves no file behind
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in chain([first], batches):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            written += len(batch)
    if written != expected:
        raise ValueError(f"{path}: {written} rows were computed for {expected} prompt groups")


def fields_of(kind: str) -> list[str]:
    """The names of the fields of a kind of column."""
    names: list[str] = _arrow_schema(kind).names
    return names


def _arrow_schema(kind: str) -> Any:
    """The fields of each kind of column, one row a prompt group."""
    import pyarrow as pa

    ids, numbers = pa.list_(pa.int32()), pa.list_(pa.float64())
    fields = {
        "tokens": {
            "prompt_ids": ids,
            "responses_ids": pa.list_(ids),
            "prompt_truncated": pa.bool_(),
            "responses_truncated": pa.int32(),
            "merged_boundary": pa.int32(),
            "special_in_text": pa.int32(),
            "first_equal": ids,  # of each response the first one with the same ids
            "prompt_differs": pa.bool_(),
            "responses_changed": pa.int32(),
            "unread": pa.int32(),
        },
        "reference": {"ref_logps": numbers},  # log pi_ref(y|x), nats, one per response
        "reward": {"scores": numbers},  # raw reward, in the scorer's unit, one per response
        # [chosen, rejected] indices of responses; how many more had the same tokens on both sides
        "pairs": {"pairs": pa.list_(ids), "dropped": pa.int32()},
        "samples": {"responses": pa.list_(pa.string())},  # answers of the reference policy
    }
    return pa.schema(fields[kind])
