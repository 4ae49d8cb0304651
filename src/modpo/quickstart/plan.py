"""What the quickstart does on this machine: the largest size that its rates let fit into the time.

What was planned stays in the output folder, so that the same command goes on with the same work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modpo.base.errors import InputError, Problem
from modpo.base.files import write_json
from modpo.base.progress import duration, say
from modpo.experiment.file import EXPERIMENT_FILE
from modpo.quickstart.size import FAST, SEPARATE_FAST, Rates, Size, largest_within, sizes

FILE = "plan.json"  # in the output folder
MINUTES = 15.0
SHARE = 0.85  # of the time that is planned with: machines are not as fast in every minute


@dataclass(frozen=True)
class Plan:
    """What is done, and what each stage is expected to take, in seconds."""

    size: Size
    expected: dict[str, float]

    @property
    def seconds(self) -> float:
        """Of the whole."""
        return sum(self.expected.values())


def make_plan(output: Path, rates: Callable[[], Rates], *, separate: bool, fast: bool, minutes: float | None) -> Plan:
    """The plan that stands in the output folder, else a new one, told in a line and written there.

    Args:
        rates: measures them.
        fast: the smallest size, however fast the machine is.
        minutes: that it may take; None: 15, or what it was planned with.

    Raises:
        InputError: the folder was begun with something else, or holds another experiment.
    """
    asked = {"separate": separate, "fast": fast, "minutes": minutes}
    kept = _kept(output / FILE, asked)
    if kept is not None:
        say(f"plan: {kept.size}, as it was begun")
        return kept
    if (output / EXPERIMENT_FILE).exists() and not (output / FILE).exists():
        problem = "the folder holds an experiment that was not planned here"
        raise InputError(Problem(str(output), "", problem, "name another folder"))
    measured = rates()
    choices = sizes(separate=separate)
    within = (minutes or MINUTES) * 60
    smallest = SEPARATE_FAST if separate else FAST
    size = smallest if fast else largest_within(SHARE * within, measured, choices)
    plan = Plan(size, size.seconds(measured))
    _tell(plan, choices[0], measured, within, fast=fast)
    written = {"asked": asked, "size": asdict(size), "expected": plan.expected, "rates": asdict(measured)}
    write_json(output / FILE, written)
    return plan


def _tell(plan: Plan, full: Size, rates: Rates, within: float, *, fast: bool) -> None:
    speed = (
        f"{rates.sampling:.0f} tokens a second are sampled, {rates.reading:.0f} read, {rates.training:.0f} trained on"
    )
    say(f"this machine: {speed}")
    if plan.size != full and not fast:
        say(f"the full size ({full}) would take about {duration(sum(full.seconds(rates).values()))}")
    late = plan.seconds > within and not fast
    more = f", more than {duration(within)}: it is the smallest size" if late else ""
    say(f"plan: {plan.size}: about {duration(plan.seconds)}{more}")


def _kept(path: Path, asked: Mapping[str, Any]) -> Plan | None:
    """The plan of an earlier start; None where there is none, or none that can be read.

    Raises:
        InputError: something else is asked for now.
    """
    try:
        written = json.loads(path.read_text("utf-8"))
        plan, before = Plan(Size(**written["size"]), dict(written["expected"])), dict(written["asked"])
        begun = {"separate": bool(before["separate"]), "fast": bool(before["fast"]), "minutes": before["minutes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    other = [name for name in ("separate", "fast") if asked[name] != begun[name]]
    if asked["minutes"] is not None and (begun["fast"] or asked["minutes"] != (begun["minutes"] or MINUTES)):
        other.append("minutes")
    if other:
        problem = f"the folder was begun {_in_words(begun)}, not {_in_words(asked)}"
        raise InputError(Problem(str(path), other[0], problem, "name another folder, or ask for the same"))
    return plan


def _in_words(asked: Mapping[str, Any]) -> str:
    size = "with the smallest size" if asked["fast"] else f"for {asked['minutes'] or MINUTES:g} minutes"
    return f"{size} and {'a training for each vector' if asked['separate'] else 'one training'}"
