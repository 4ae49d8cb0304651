"""The policies of a front as every part of the report shows them: in one order, with titles, marks and colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modpo.base.simplex import label
from modpo.front.schema import Front, Point
from modpo.report.escape import short

REFERENCE_COLOUR = "#78818f"
ONE_COLOUR = "#1a7fc1"
# along the weights of two objectives; blue to orange stays apart for every kind of colour vision
RAMP = ("#2166c4", "#8a5fc7", "#d1567f", "#e8893a")


@dataclass(frozen=True)
class Policy:
    """The reference, or a point of the front."""

    point: Point
    title: str  # `positive 0.7, concise 0.3`; numbered where its mark is a number
    mark: str  # in the plots: its weights with two objectives, its number in the table with more
    colour: str  # `#rrggbb`
    is_reference: bool = False

    @property
    def faded(self) -> bool:
        """Whether another point dominates it."""
        return self.point.dominated and not self.is_reference

    @property
    def flag(self) -> str:
        """What its audit found wrong, if anything."""
        return self.point.audit.verdict if self.point.audit else ""


def policies(front: Front) -> list[Policy]:
    """The reference, then the points by falling weight of the first objective, then of the second, ..."""
    names = [o.name for o in front.objectives]
    points = sorted(front.points, key=lambda point: [-weight for weight in weights_of(point, names)])
    reference = Policy(front.reference, front.reference.name, "reference", REFERENCE_COLOUR, is_reference=True)
    return [reference, *(_policy(point, number, names) for number, point in enumerate(points, start=1))]


def _policy(point: Point, number: int, names: Sequence[str]) -> Policy:
    title = point.name if point.weights is None else label(point.weights)
    if len(names) == 1:
        return Policy(point, title, short(point.name), ONE_COLOUR)
    if len(names) == 2:
        return Policy(point, title, weights_text(point, names), _ramp(1 - weights_of(point, names)[0]))
    return Policy(point, title if point.weights is None else f"{number}: {title}", str(number), ONE_COLOUR)


def weights_of(point: Point, names: Sequence[str]) -> list[float]:
    """In the objectives' order."""
    return [(point.weights or {}).get(name, 0.0) for name in names]


def weights_text(point: Point, names: Sequence[str]) -> str:
    """`0.7 / 0.3`, in the objectives' order."""
    return " / ".join(f"{weight:.3g}" for weight in weights_of(point, names))


def _ramp(position: float) -> str:
    """A colour between RAMP's first (0) and last (1)."""
    step, part = divmod(min(max(position, 0.0), 1.0) * (len(RAMP) - 1), 1)
    ends = RAMP[int(step)], RAMP[min(int(step) + 1, len(RAMP) - 1)]
    channels = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in ends]
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(*channels, strict=True))
