"""What the picture and the interactive chart show, and where: every panel as numbers, titles and a place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from modpo.base.simplex import label
from modpo.front.schema import Front, FrontObjective, Point
from modpo.report.escape import short
from modpo.report.numbers import percent

REFERENCE_COLOUR = "#78818f"
ONE_COLOUR = "#1a7fc1"
# along the weights of two objectives; blue to orange stays apart for every kind of colour vision
RAMP = ("#2166c4", "#8a5fc7", "#d1567f", "#e8893a")


@dataclass(frozen=True)
class Axis:
    """One quantity of every policy, with the ends of its interval."""

    title: str
    short_title: str
    values: list[float]
    low: list[float]
    high: list[float]
    is_score: bool  # else KL
    reversed: bool  # a minimised objective runs backwards, so that up and right are better


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


def policies(front: Front) -> list[Point]:
    """The reference, then the points by falling weight of the first objective, then of the second, ..."""
    names = [o.name for o in front.objectives]
    weights = {point.name: [-(point.weights or {}).get(name, 0.0) for name in names] for point in front.points}
    return [front.reference, *sorted(front.points, key=lambda point: weights[point.name])]


def short_labels(front: Front) -> list[str]:
    """A mark for each policy: its weights with two objectives, its number in the table with more."""
    names = [o.name for o in front.objectives]
    points = policies(front)[1:]
    if len(names) == 1:
        return ["reference", *(short(point.name) for point in points)]
    if len(names) == 2:
        return ["reference", *(weights_text(point, names) for point in points)]
    return ["reference", *(str(number) for number, _ in enumerate(points, start=1))]


def policy_title(front: Front, i: int) -> str:
    """`positive 0.7, concise 0.3` for the i-th of `policies`; numbered where its mark is a number."""
    policy = policies(front)[i]
    if policy.weights is None:
        return policy.name
    return f"{i}: {label(policy.weights)}" if len(front.objectives) > 2 else label(policy.weights)


def weights_text(point: Point, names: Sequence[str]) -> str:
    """`0.7 / 0.3`, in the objectives' order."""
    return " / ".join(f"{(point.weights or {}).get(name, 0.0):.3g}" for name in names)


def colours(front: Front) -> list[str]:
    """One `#rrggbb` a policy: along a ramp by the first of two weights, else one colour for all points."""
    points = policies(front)[1:]
    if len(front.objectives) != 2:
        return [REFERENCE_COLOUR] + [ONE_COLOUR] * len(points)
    first = front.objectives[0].name
    return [REFERENCE_COLOUR, *(_ramp(1 - (point.weights or {}).get(first, 0.0)) for point in points)]


def _ramp(position: float) -> str:
    """A colour between RAMP's first (0) and last (1)."""
    step, part = divmod(min(max(position, 0.0), 1.0) * (len(RAMP) - 1), 1)
    ends = RAMP[int(step)], RAMP[min(int(step) + 1, len(RAMP) - 1)]
    channels = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in ends]
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(*channels, strict=True))


def layout(front: Front) -> Layout:
    """Each pair of objectives (up and right are better), and each objective against KL."""
    axes, kl = [_score_axis(front, objective) for objective in front.objectives], _kl_axis(front)
    scores = f"Mean scores, {percent(front.evaluation.get('confidence'))} intervals"
    against_kl = f"Score ({percent(front.evaluation.get('confidence'))} interval) against KL (± SE)"
    if len(axes) == 1:
        return Layout([Panel(kl, axes[0], 0, 0, 2, [], against_kl)], 2, 1, [1.0])
    if len(axes) == 2:
        by_weight = list(range(1, len(front.points) + 1))
        large = Panel(axes[0], axes[1], 0, 0, 2, _front_line(front, axes[0]), scores)
        small = [Panel(kl, y, row, 1, 1, by_weight, "" if row else against_kl) for row, y in enumerate(axes)]
        return Layout([large, *small], 2, 2, [1.65, 1.0])
    pairs = list(itertools.combinations(axes, 2))
    skipped = -len(pairs) % 3  # the panels against KL begin a row of their own
    cells: list[tuple[Axis, Axis, str] | None] = [(x, y, "" if i else scores) for i, (x, y) in enumerate(pairs)]
    cells += [None] * skipped + [(kl, y, "" if i else against_kl) for i, y in enumerate(axes)]
    panels = [Panel(c[0], c[1], *divmod(i, 3), 1, [], c[2]) for i, c in enumerate(cells) if c]
    return Layout(panels, panels[-1].row + 1, 3, [1.0] * 3)


def _front_line(front: Front, x: Axis) -> list[int]:
    """The non-dominated points, from left to right."""
    kept = [i for i, policy in enumerate(policies(front)) if i > 0 and not policy.dominated]
    return sorted(kept, key=lambda i: x.values[i])


def _score_axis(front: Front, objective: FrontObjective) -> Axis:
    scores = [policy.scores[objective.name] for policy in policies(front)]
    name, unit = short(objective.name), short(objective.unit)
    direction = "higher is better" if objective.maximize else "lower is better"
    return Axis(
        title=f"{name} ({f'{unit}, ' if unit else ''}{direction}) →",
        short_title=f"{name}{f' ({unit})' if unit else ''} →",
        values=[score.mean for score in scores],
        low=[score.ci_low for score in scores],
        high=[score.ci_high for score in scores],
        is_score=True,
        reversed=not objective.maximize,
    )


def _kl_axis(front: Front) -> Axis:
    estimates = [policy.kl for policy in policies(front)]
    title = "KL from the reference (nats per answer)"
    return Axis(
        title=title,
        short_title=title,
        values=[kl.mean for kl in estimates],
        low=[kl.mean - kl.se for kl in estimates],
        high=[kl.mean + kl.se for kl in estimates],
        is_score=False,
        reversed=False,
    )
