"""An artifact: a folder that is made once from what decides it, and kept.

    artifact = Artifact(folder, parts, label)
    if artifact.there() is None:
        with artifact.making(weights=weights) as new:
            ...                          # fill new.folder
        artifact.there()                 # its manifest

A run that is killed and started again finds every artifact that was finished, and makes the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modpo.base.costs import Cost, Meter
from modpo.base.errors import InputError, IntegrityError, Problem
from modpo.base.files import new_folder, read_manifest, sha256_json
from modpo.base.progress import say

KEY, COST = "key", "cost"  # of the manifest


@dataclass(frozen=True)
class New:
    """An artifact that is being made.

    Attributes:
        folder: to fill; it takes its place when it is finished.
        about: what the manifest says besides; may be added to while it is made. Its `cost` is what the block takes,
            unless the block sets another.
    """

    folder: Path
    about: dict[str, Any]


@dataclass(frozen=True)
class Artifact:
    """A folder under a key, with a manifest.

    Args:
        folder: where it lies.
        parts: everything that decides its content, by name, as JSON; the key is the hash of it.
        label: what the console calls it; empty: one that is kept is not reported.
        replaceable: one of another key is made again, where else it would be refused.
        guarded: content without a manifest is somebody's work and refused, where else it is a loss and made again.
    """

    folder: Path
    parts: Mapping[str, Any]
    label: str = ""
    replaceable: bool = False
    guarded: bool = False

    @property
    def key(self) -> str:
        """sha256 of `parts`."""
        return sha256_json(self.parts)

    def there(self) -> dict[str, Any] | None:
        """The manifest of an artifact that is finished, its files verified; None where there is none.

        Raises:
            IntegrityError: it was made from something else, or changed since. InputError: see `require_free`.
        """
        manifest = read_manifest(self.folder)
        if manifest is None:
            if self.guarded:
                require_free(self.folder)
            return None
        if manifest.get(KEY) != self.key:
            if self.replaceable:
                return None
            raise IntegrityError(f"{self.folder}: was made from other data or settings; fix: delete it and run again")
        if self.label:
            say(f"{self.label}: finished before, kept")
        return manifest

    @contextmanager
    def making(self, **about: Any) -> Iterator[New]:
        """Fill the yielded folder; on leaving without error it is the artifact. `about` goes into its manifest."""
        written: dict[str, Any] = {KEY: self.key, **about}
        with new_folder(self.folder, written) as temporary, Meter() as meter:
            yield New(temporary, written)
            written.setdefault(COST, meter.cost.written())


def cost_of(manifest: Mapping[str, Any]) -> Cost | None:
    """What making an artifact took; None where its manifest does not say, as in older versions."""
    return Cost.of(manifest[COST]) if COST in manifest else None


def require_free(folder: Path) -> None:
    """Refuse a folder with content but without a manifest: it is somebody's work.

    Raises:
        InputError: it is such a folder.
    """
    if folder.is_dir() and any(folder.iterdir()) and read_manifest(folder) is None:
        fix = "name a new folder or an empty one, or move it away"
        raise InputError(Problem(str(folder), "", "holds something that modpo did not make", fix))
