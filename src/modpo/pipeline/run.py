"""A run as its stages: which one it is at, how long it has taken, how long it still takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from modpo.base.heartbeat import Activity, duration
from modpo.base.progress import Progress, progress_within, say

SWEEP, EVALUATE, REPORT = "sweep", "evaluate", "report"
DRAWING_SECONDS = 10.0  # of the report, whatever the run


class Stages(Activity):
    """A run, which goes through its stages in order.

    What is left of it is told as soon as the present stage and all that follow are known: by `expected`, corrected by
    how long the stages before took against it, or by the progress that spans the present one.

    Args:
        names: of the stages.
        expected: seconds that stages take on this machine, by name; of others nothing is known before they run.
    """

    def __init__(self, names: Sequence[str], expected: Mapping[str, float] | None = None) -> None:
        super().__init__("whole run")
        self._names = list(names)
        self._expected = {REPORT: DRAWING_SECONDS, **(expected or {})}
        self._taken: dict[str, float] = {}  # of the stages that were worked at from their beginning
        self._stage: _Stage | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within it the stage of that name runs; one line says so."""
        number = self._names.index(name)
        later = self._names[number + 1 :]
        with _Stage(
            f"stage {number + 1} of {len(self._names)}: {name}", self._expected.get(name), self, later
        ) as stage:
            self._stage = stage
            say(f"{stage.label}; {self.outlook()}" if number or self.left() is not None else stage.label)
            yield
        self._stage = None
        if stage.worked and not stage.resumed:
            self._taken[name] = stage.elapsed

    def left(self) -> float | None:
        """Seconds that the run still takes; None where that is not known."""
        stage = self._stage  # which may end at any time: it is asked for by another thread
        here = stage.left() if stage is not None else None
        if stage is None or here is None or not self._expected.keys() >= set(stage.later):
            return None
        return here + self.pace() * sum(self._expected[name] for name in stage.later)

    def pace(self) -> float:
        """Seconds that the stages before took, for each that was expected of them."""
        taken = {name: seconds for name, seconds in self._taken.copy().items() if self._expected.get(name)}
        expected = sum(self._expected[name] for name in taken)
        return sum(taken.values()) / expected if expected else 1.0

    def status(self) -> str:
        left = self.left()
        return f"{duration(self.elapsed)} so far" + ("" if left is None else f", about {duration(left)} left")

    def outlook(self) -> str:
        return f"{self.label}: {self.status()}"


class _Stage(Activity):
    """One stage of a run.

    Attributes:
        worked: something was counted in it. resumed: part of that was there before.
    """

    def __init__(self, label: str, expected: float | None, run: Stages, later: Sequence[str]) -> None:
        super().__init__(label)
        self.later, self.worked, self.resumed = later, False, False
        self._expected, self._run = expected, run

    def left(self) -> float | None:
        """Seconds: by what spans it, as soon as that knows, else by what was expected."""
        inner = progress_within(self)
        if inner is not None and inner.spans and (left := inner.left()) is not None:
            return left
        if self._expected is None:
            return None
        left = self._expected * self._run.pace() - self.elapsed
        return left if left > 0 else None  # it takes longer than expected: nobody knows how long

    def learns_from(self, inner: Activity) -> None:
        if isinstance(inner, Progress):
            self.worked |= inner.done > inner.before
            self.resumed |= inner.before > 0
