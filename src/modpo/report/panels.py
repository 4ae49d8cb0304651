"""What the picture and the interactive chart show, and where: every panel as numbers, titles and a place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from modpo.front.schema import Front, FrontObjective
from modpo.report.escape import short
from modpo.report.numbers import percent
from modpo.report.policies import Policy, policies


@dataclass(frozen=True)
class Axis:
    """One quantity of every policy, with the ends of its interval."""

    title: str
    short_title: str
    values: list[float]
    low: list[float]
    high: list[float]
    is_score: bool = True  # else KL
    reversed: bool = False  # a minimised objective runs backwards, so that up and right are better

    def bar(self, i: int) -> tuple[float, float]:
        """Down and up from the i-th value; a percentile interval need not hold it."""
        return max(self.values[i] - self.low[i], 0.0), max(self.high[i] - self.values[i], 0.0)


@dataclass(frozen=True)
class Panel:
    """One plot of all policies, in the order of `policies`."""

    x: Axis
    y: Axis
    row: int
    column: int
    row_span: int
    line: list[int]  # policies joined by a line, in its order
    title: str


@dataclass(frozen=True)
class Layout:
    """The panels on their grid. With two objectives the front itself takes the large left cell."""

    panels: list[Panel]
    rows: int
    columns: int
    column_widths: list[float]


def layout(front: Front) -> Layout:
    """Each pair of objectives (up and right are better), and each objective against KL."""
    shown = policies(front)
    axes, kl = [_score_axis(objective, shown) for objective in front.objectives], _kl_axis(shown)
    confidence = percent(front.evaluation.get("confidence"))
    scores, against_kl = f"Mean scores, {confidence} intervals", f"Score ({confidence} interval) against KL (± SE)"
    if len(axes) == 1:
        return Layout([Panel(kl, axes[0], 0, 0, 2, [], against_kl)], 2, 1, [1.0])
    if len(axes) == 2:
        by_weight = list(range(1, len(shown)))
        front_line = sorted((i for i in by_weight if not shown[i].faded), key=lambda i: axes[0].values[i])
        large = Panel(axes[0], axes[1], 0, 0, 2, front_line, scores)
        small = [Panel(kl, y, row, 1, 1, by_weight, "" if row else against_kl) for row, y in enumerate(axes)]
        return Layout([large, *small], 2, 2, [1.65, 1.0])
    pairs = list(itertools.combinations(axes, 2))
    skipped = -len(pairs) % 3  # the panels against KL begin a row of their own
    cells: list[tuple[Axis, Axis, str] | None] = [(x, y, "" if i else scores) for i, (x, y) in enumerate(pairs)]
    cells += [None] * skipped + [(kl, y, "" if i else against_kl) for i, y in enumerate(axes)]
    panels = [Panel(c[0], c[1], *divmod(i, 3), 1, [], c[2]) for i, c in enumerate(cells) if c]
    return Layout(panels, panels[-1].row + 1, 3, [1.0] * 3)


def _score_axis(objective: FrontObjective, shown: Sequence[Policy]) -> Axis:
    scores = [policy.point.scores[objective.name] for policy in shown]
    name, unit = short(objective.name), short(objective.unit)
    return Axis(
        title=f"{name} ({unit}{', ' if unit else ''}{better(objective)}) →",
        short_title=f"{name}{f' ({unit})' if unit else ''} →",
        values=[score.mean for score in scores],
        low=[score.ci_low for score in scores],
        high=[score.ci_high for score in scores],
        reversed=not objective.maximize,
    )


def better(objective: FrontObjective) -> str:
    """Which way its scores improve."""
    return "higher is better" if objective.maximize else "lower is better"


def _kl_axis(shown: Sequence[Policy]) -> Axis:
    title, estimates = "KL from the reference (nats per answer)", [policy.point.kl for policy in shown]
    low, high = [kl.mean - kl.se for kl in estimates], [kl.mean + kl.se for kl in estimates]
    return Axis(title, title, [kl.mean for kl in estimates], low, high, is_score=False)
