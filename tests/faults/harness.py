"""A run with a fault, its retry, and what must hold after both.

A run is `python -m modpo sweep` on the experiment of experiment.py, in a process that `Server` forks. First one runs
undisturbed and records every fault point that it reaches: these, by their number, are the sites of faults.
The same run is also done in parts, by the commands of its stages, each on what the one before left: a fault in one is
then tried without what comes before and after it.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from modpo.base.fault_points import VARIABLE

from . import invariants
from .experiment import FILE, finished, label, results, write_experiment

SECONDS = 120  # the longest that a run may take
RECORD = "record"
WHOLE = ("sweep", FILE)
IN_PARTS = (("score", FILE), ("sweep", FILE, "--no-evaluate"), ("evaluate", FILE), ("report", "run"))
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Site:
    """The nth time that a run reaches a point; `what` it was about."""

    point: str
    nth: int
    what: str

    def fault(self, action: str) -> str:
        """The value of MODPO_FAULT."""
        return f"{self.point}:{self.nth}:{action}"


@dataclass(frozen=True)
class Part:
    """One command of a run, undisturbed: from what it started, and with what it ended."""

    arguments: tuple[str, ...]
    before: Path
    after: Path

    @cached_property
    def expected(self) -> dict[str, Any]:
        """What it must end with, whatever happens in between."""
        return results(self.after)

    @cached_property
    def sites(self) -> list[Site]:
        """Every point that it reaches, in order."""
        counted: Counter[str] = Counter()
        found = []
        for line in (self.after / RECORD).read_text().splitlines():
            point, _, path = line.partition("\t")
            counted[point] += 1
            found.append(Site(point, counted[point], label(path, self.after)))
        return found


@dataclass(frozen=True)
class Done:
    """How a run ended; `code` is None when it had to be ended from outside."""

    code: int | None
    stderr: str
    orphans: bool = False


@dataclass(frozen=True)
class Outcome:
    """A case and what did not hold in it."""

    case: str
    wrong: list[str]


class Server:
    """The process that forks the runs; see server.py."""

    def __init__(self, log: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )
        self._log_path = log
        self._read()

    def run(
        self,
        folder: Path,
        arguments: Iterable[str] = WHOLE,
        *,
        fault: str = "",
        environment: Mapping[str, str] | None = None,
        setup: Iterable[Any] = (),
        list_modules: Path | None = None,
    ) -> Done:
        """Run modpo in a folder.

        Args:
            fault: of modpo.base.fault_points.
            setup: a function of inflicted.py and its arguments.
        """
        number = next(_NUMBERS)
        streams = {name: str(folder / f"{name}-{number}") for name in ("stdout", "stderr")}
        request = {
            "arguments": list(arguments),
            "folder": str(folder),
            "environment": {**(environment or {}), **({VARIABLE: fault} if fault else {})},
            "setup": list(setup),
            "timeout": SECONDS,
            "list_modules": str(list_modules) if list_modules else None,
            **streams,
        }
        reply = self._ask(request)
        stderr = Path(streams["stderr"]).read_text("utf-8", "replace")
        return Done(reply["code"], stderr, reply["orphans"])

    def import_all(self, listed: Path) -> None:
        """Import what a run had imported."""
        self._ask({"modules": str(listed)})

    def stop(self) -> None:
        """End it; runs end before."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._log.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended: {self._log_path.read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Servers:
    """Several servers; a run is given to one that is free."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self._all = [Server(folder / f"server-{i}.log") for i in range(count)]
        self._free: queue.SimpleQueue[Server] = queue.SimpleQueue()
        for server in self._all:
            self._free.put(server)

    def run(self, folder: Path, *arguments: Any, **how: Any) -> Done:
        """`Server.run` of a free one."""
        with self._borrowed() as server:
            return server.run(folder, *arguments, **how)

    def import_all(self, listed: Path) -> None:
        """In all of them; none may be running."""
        for server in self._all:
            server.import_all(listed)

    def stop(self) -> None:
        """End them."""
        for server in self._all:
            server.stop()

    @contextmanager
    def _borrowed(self) -> Iterator[Server]:
        server = self._free.get()
        try:
            yield server
        finally:
            self._free.put(server)


@dataclass
class House:
    """Folders of runs, and the undisturbed run that they are held against."""

    folder: Path
    model: Path
    server: Servers

    def new_case(self) -> Path:
        """A folder with the experiment, in which nothing has run."""
        folder = self.folder / f"case-{next(_NUMBERS)}"
        write_experiment(folder, self.model)
        return folder

    @cached_property
    def whole(self) -> Part:
        """A run to which nothing happened."""
        modules = self.folder / "modules"
        part = self._undisturbed(WHOLE, self.new_case(), list_modules=modules)
        self.server.import_all(modules)
        return part

    @cached_property
    def parts(self) -> list[Part]:
        """The same run, a command at a time."""
        _ = self.whole  # what it imports comes first
        parts = [self._undisturbed(IN_PARTS[0], self.new_case())]
        for arguments in IN_PARTS[1:]:
            parts.append(self._undisturbed(arguments, parts[-1].after))
        return parts

    def _undisturbed(self, arguments: tuple[str, ...], before: Path, **how: Any) -> Part:
        after = self.copy(before)
        done = self.server.run(after, arguments, fault=f"record:{after / RECORD}", **how)
        assert done.code == 0, done.stderr
        assert invariants.visible_verifies(after) == []
        return Part(arguments, before, after)

    @property
    def undisturbed(self) -> Path:
        """The folder that `whole` ended with."""
        return self.whole.after

    @property
    def expected(self) -> dict[str, Any]:
        """What every whole run must end with."""
        return self.whole.expected

    def site(self, point: str, what: str) -> Site:
        """The first site of that point in a whole run whose path holds `what`."""
        return next(site for site in self.whole.sites if site.point == point and what in site.what)

    def finished_case(self) -> Path:
        """A copy of the folder of the undisturbed run."""
        return self.copy(self.undisturbed)

    def copy(self, source: Path) -> Path:
        """A copy of a folder in which something has run."""
        folder = self.folder / f"case-{next(_NUMBERS)}"
        shutil.copytree(source, folder, symlinks=True)
        for old in (*folder.glob("std*-*"), *folder.glob(RECORD)):
            old.unlink()
        return folder

    # --- cases ----------------------------------------------------------------------------------------------

    def strike(self, site: Site, action: str, part: Part | None = None) -> Outcome:
        """A fault at a site of a part, or of a whole run, and the retry."""
        part = part or self.whole
        folder = self.copy(part.before)
        done = self.server.run(folder, part.arguments, fault=site.fault(action))
        wrong = invariants.left_right(action, done.code, done.stderr, folder)
        case = f"{part.arguments[0]}: {action} at {site.point} {site.nth} ({site.what})"
        return self.judge(case, folder, done, wrong, part)

    def judge(self, case: str, folder: Path, done: Done, wrong: list[str], part: Part | None = None) -> Outcome:
        """What must hold after any fault: B, C, E now, and A after a retry. Deletes the folder when all did."""
        wrong = [*wrong, *(f"B: {w}" for w in invariants.visible_verifies(folder))]
        wrong += [f"E: {w}" for w in invariants.nothing_left(folder, done.orphans)]
        before = finished(folder)
        wrong += self.retried(folder, part)
        wrong += [f"C: {w}" for w in invariants.untouched(before, finished(folder))]
        if not wrong:
            shutil.rmtree(folder, ignore_errors=True)  # a part of it may be mounted
        return Outcome(case, wrong)

    def retried(self, folder: Path, part: Part | None = None) -> list[str]:
        """A: the same command again ends well, with the results of the undisturbed one."""
        part = part or self.whole
        again = self.server.run(folder, part.arguments)
        if again.code != 0:
            return [f"A: the retry left with {again.code}: {again.stderr[-500:]}"]
        found, expected = results(folder), part.expected
        wrong = [f"A: {n}: differs" for n in sorted(found.keys() | expected.keys()) if found.get(n) != expected.get(n)]
        wrong += [f"A: {w}" for w in invariants.one_line(again.stderr, 0)]
        return wrong + [f"E: {w}" for w in invariants.nothing_unfinished(folder)]


def gather(cases: Sequence[Callable[[], Outcome]], workers: int) -> list[Outcome]:
    """Run cases, several at a time; their outcomes in the cases' order."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda case: case(), cases))
