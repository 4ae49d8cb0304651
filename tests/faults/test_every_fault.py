"""Every fault of docs/reliability.md on real runs: `make faults`. One row of the table a test."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from modpo.base.files import MANIFEST

from . import damage, surroundings
from .experiment import PROMPTS
from .harness import House, Outcome, Part, Site, gather
from .table import Table

pytestmark = pytest.mark.slow

FLIPS = 200
ACTIONS = {
    "term": "SIGTERM",
    "int": "SIGINT",
    "enospc": "no space left, as the system says it",
    "eio": "I/O error",
    "short": "short write: half of the file, then an I/O error",
    "raise": "an exception that nobody expects",
}
LIKE_ANOTHER = ("int", "eio")  # handled where "term" and "enospc" are: at each point, not on each kind of artefact
WRITTEN = ("file.written", "folder.filled")  # where a short write shows
AROUND = (*WRITTEN, "file.renamed", "folder.renamed")  # on each kind of artefact: before it is in its place, and after


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """Printed in the end; written into docs/reliability.md if MODPO_FAULT_TABLE says so and every row is there."""
    made = Table()
    yield made
    print(f"\n{made}")
    rows = [item for item in request.session.items if "table" in getattr(item, "fixturenames", ())]
    if os.environ.get("MODPO_FAULT_TABLE") and len(made.rows) == len(rows):
        made.write()


@pytest.fixture
def enter(house: House, table: Table) -> Callable[[str, Sequence[Callable[[], Outcome]]], None]:
    """Try cases and enter them as a row; fails where one did not hold."""

    def run(fault: str, cases: Sequence[Callable[[], Outcome]], workers: int | None = None) -> None:
        assert cases
        assert house.expected  # the undisturbed run comes first
        assert table.add(fault, gather(cases, workers or house.server.count)) == []

    return run


def strikes(house: House, action: str) -> list[Callable[[], Outcome]]:
    """An action at the first site of each point, and around the publication of each kind of artefact."""
    first: dict[tuple[str, str], Callable[[], Outcome]] = {}
    for part in house.parts:
        for site in part.sites:
            kind = _kind(site.what) if site.point in AROUND and action not in LIKE_ANOTHER else ""
            if action != "short" or site.point in WRITTEN:
                first.setdefault((site.point, kind), partial(house.strike, site, action, part))
    return list(first.values())


def first_and_last(part: Part) -> list[Site]:
    """Sites of a part, but those in between of many that are about the same kind of file."""
    many: dict[tuple[str, str], list[Site]] = {}
    for site in part.sites:
        kind = _kind(site.what) if site.point.startswith("file.") else str(site.nth)
        many.setdefault((site.point, kind), []).append(site)
    return [site for same in many.values() for site in dict.fromkeys((same[0], same[-1]))]


def _kind(what: str) -> str:
    """One column stands for all, and so do a point, a checkpoint and a measurement."""
    if "scored" in what and "calibration" not in what:
        return f"column{Path(what).suffix}"
    what = re.sub(r"run/evaluation/[^/]+|cache/evaluation/[0-9a-f]+/[^/]+", "evaluation", what)
    return re.sub(r"checkpoint-\d+", "checkpoint", re.sub(r"kind[\d.]+-concise[\d.]+", "point", what))


# --- at every point -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "points"),
    [
        (
            "SIGKILL at each step of publishing a file, of each kind",
            ("file.begun", "file.written", "file.flushed", "file.renamed"),
        ),
        (
            "SIGKILL at each step of publishing a folder",
            ("folder.begun", "folder.filled", "folder.flushed", "folder.cleared", "folder.renamed"),
        ),
        ("SIGKILL at each row that is scored, at each shard", ("shard.row", "shard.published")),
        ("SIGKILL at each training step, in retention, at each lock", ()),
    ],
    ids=["files", "folders", "scoring", "rest"],
)
def test_killed(house: House, enter: Callable, fault: str, points: tuple[str, ...]) -> None:
    def here(point: str) -> bool:
        return point in points if points else point.partition(".")[0] not in ("file", "folder", "shard")

    found = [(part, site) for part in house.parts for site in first_and_last(part) if here(site.point)]
    enter(fault, [partial(house.strike, site, "kill", part) for part, site in found])


def test_a_whole_run_killed(house: House, enter: Callable) -> None:
    last = {site.point: site for site in house.whole.sites}
    enter(
        "SIGKILL in a whole sweep, the last time at each point",
        [partial(house.strike, s, "kill") for s in last.values()],
    )


@pytest.mark.parametrize("action", ACTIONS)
def test_struck(house: House, enter: Callable, action: str) -> None:
    where = "around the publication of each kind of artefact"
    where = {"short": where, **dict.fromkeys(LIKE_ANOTHER, "at each point")}.get(action, f"at each point, {where}")
    enter(f"{ACTIONS[action]}: {where}", strikes(house, action))


# --- files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(house: House) -> Path:
    """A run that was killed when its second vector had taken three steps."""
    folder = house.new_case()
    third = [site for site in house.whole.sites if site.point == "step.done"][-2]
    done = house.server.run(folder, fault=third.fault("kill"))
    assert done.code == -9
    return folder


@pytest.mark.parametrize("kind", ["shard", "adapter", "manifest", "measurement", "calibration", "checkpoint", "front"])
def test_flipped_bits(house: House, interrupted: Path, enter: Callable, kind: str) -> None:
    source = interrupted if kind == "checkpoint" else house.undisturbed
    files = [path for path in damage.published_files(source) if damage.kind(path) == kind]
    files = [source / "run" / "front.json"] if kind == "front" else files
    outcomes = damage.flips(source, files, FLIPS)
    article = "an" if kind == "adapter" else "a"
    enter(f"one bit flipped in {article} {kind}", [lambda outcome=outcome: outcome for outcome in outcomes])


@pytest.mark.parametrize(
    ("fault", "inflict"),
    [
        ("a file truncated", damage.truncate),
        ("a file deleted", damage.delete),
        ("a file flipped in one bit: what the run says", damage.flip_one),
        ("a manifest edited", damage.edit),
        ("a symlink swapped in", damage.swap_in_symlink),
        ("a file put beside an adapter", damage.put_beside),
    ],
    ids=["truncated", "deleted", "flipped", "edited", "symlink", "foreign"],
)
def test_damaged_files(
    house: House, interrupted: Path, enter: Callable, fault: str, inflict: Callable[[Path], None]
) -> None:
    cases = []
    for source, copy in ((house.undisturbed, house.finished_case), (interrupted, partial(house.copy, interrupted))):
        for path in _one_of_each(source, inflict, checkpoints=source == interrupted):
            cases.append(partial(_damage_copy, house, copy, path.relative_to(source), inflict))
    enter(fault, cases)


def _one_of_each(folder: Path, inflict: Callable[[Path], None], *, checkpoints: bool) -> list[Path]:
    """The manifest and the largest file of each kind of published folder; for a deletion, one file of each name."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(damage.published_files(folder), key=lambda path: -path.stat().st_size):
        kind = damage.kind(path)
        if (kind == "checkpoint" or "checkpoint-" in path.parent.name) != checkpoints:
            continue
        if inflict is damage.edit and path.name != MANIFEST:
            continue
        if inflict is damage.put_beside and path.name != "adapter_model.safetensors":
            continue
        place = "calibration" if "calibration-" in path.parent.name else path.parent.parent.name
        named = path.name == MANIFEST or (inflict is damage.delete and "scored" not in path.parts)
        found.setdefault((place, path.name if named else "largest"), path)
    return list(found.values())


def _damage_copy(house: House, copy: Callable[[], Path], name: Path, inflict: Callable[[Path], None]) -> Outcome:
    folder = copy()
    return damage.damaged(house, folder, folder / name, inflict)


# --- around the run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["REWARD_RAISES_ON", "REWARD_NAN_ON"])
def test_a_reward_that_breaks(house: House, enter: Callable, variable: str) -> None:
    said = "raises" if "RAISES" in variable else "is NaN"
    cases = [partial(surroundings.broken_reward, house, variable, i) for i in range(0, PROMPTS, 3)]
    enter(f"the reward {said} on row N", cases)


def test_a_reward_that_hangs(house: House, enter: Callable) -> None:
    cases = [partial(surroundings.hanging_reward, house, action) for action in ("int", "term", "kill")]
    enter("the reward hangs; SIGINT, SIGTERM, SIGKILL", cases)


def test_a_loss_that_is_nan(house: House, enter: Callable) -> None:
    cases = [partial(surroundings.nan_loss, house, point, step) for point in (0, 1) for step in range(4)]
    enter("NaN in the loss at step k of a vector", cases)


def test_little_memory(house: House, enter: Callable) -> None:
    cases = [partial(surroundings.little_memory, house, c, mb) for c, mb in (("score", 200), ("sweep", 300))]
    enter("memory limit", cases, 1)


def test_full_disks(house: House, enter: Callable) -> None:
    if not surroundings.can_mount(house.folder):
        pytest.skip("no file system can be mounted here: the row with the patched write stands for it")
    shares = [(place, i / 6) for place in ("run", "cache") for i in range(6)]
    enter("no space left on a real file system", [partial(surroundings.full_disk, house, *share) for share in shares])


def test_read_only_folders(house: House, interrupted: Path, enter: Callable) -> None:
    if not surroundings.can_mount(house.folder):
        pytest.skip("no file system can be mounted read-only here")
    cases = [
        partial(surroundings.read_only, house, house.copy(interrupted), "run", 3),
        partial(surroundings.read_only, house, house.finished_case(), "run", 3),
        partial(surroundings.read_only, house, house.finished_case(), "cache", 3),
    ]
    enter("a folder that is read-only", cases)


def test_two_processes(house: House, enter: Callable) -> None:
    if house.server.count < 2:
        pytest.skip("needs MODPO_FAULT_SERVERS=2")
    enter("two sweeps on one folder", [partial(surroundings.two_sweeps, house)], 1)


def test_two_scorers(house: House, enter: Callable) -> None:
    if house.server.count < 2:
        pytest.skip("needs MODPO_FAULT_SERVERS=2")
    cases = [partial(surroundings.two_scorers, house, ending) for ending in ("well", "killed")]
    enter("two scorers on one cache", cases, 1)


def test_stale_locks(house: House, interrupted: Path, enter: Callable) -> None:
    folders = [house.copy(interrupted) for _ in range(2)]
    for folder in folders:
        for lock in folder.rglob(".lock"):
            lock.write_text("4711" if folder == folders[0] else "")
    enter("a lock left by a dead process", [partial(surroundings.clock_off, house, folder, 0) for folder in folders])


def test_a_clock_that_is_off(house: House, interrupted: Path, enter: Callable) -> None:
    cases = [
        partial(surroundings.clock_off, house, copy, sign * surroundings.YEAR)
        for sign in (1, -1)
        for copy in (house.finished_case(), house.copy(interrupted))
    ]
    enter("the clock a year off", cases)


def test_moved_folders(house: House, interrupted: Path, enter: Callable) -> None:
    copies = [house.finished_case(), house.copy(interrupted)]
    enter("run and cache moved", [partial(surroundings.moved, house, copy) for copy in copies])


def test_lost_streams(house: House, enter: Callable) -> None:
    well, broken = {0}, {0, 1, 141}
    cases = [
        partial(surroundings.stream, house, "closed", 1, well),
        partial(surroundings.stream, house, "closed", 2, well),
        partial(surroundings.stream, house, "broken_pipe", 1, well | {141}),
        partial(surroundings.stream, house, "broken_pipe", 2, broken),
    ]
    enter("standard output or error closed, or a pipe that nobody reads", cases)
