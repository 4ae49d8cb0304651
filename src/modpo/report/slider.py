"""The weight slider: it moves over the measured points, and the page shows what each of them does.

A range input for two objectives, a triangle for three, a select box for any other number. The page's address chooses
too: `report.html#point=2` opens at the second point of the table. Without JavaScript there is no slider.
"""

from __future__ import annotations

import math
from typing import Any

from modpo.front.schema import Front, Point
from modpo.report.escape import escape, visible
from modpo.report.panels import colours, policies, policy_title
from modpo.report.points import flag, heads, measured, row
from modpo.report.responses import Responses
from modpo.report.sections import table

SIDE = 192.0  # of the triangle, in units of its view box
LONGEST_CORNER = 16  # characters of an objective's name at a corner


def has_slider(front: Front) -> bool:
    """One point leaves nothing to choose."""
    return len(front.points) > 1


def slider_section(front: Front, responses: Responses | None) -> str:
    """Hidden until the script runs, which fills the first row and brings the answers here."""
    if not has_slider(front):
        return ""
    control = {2: _range, 3: _triangle}.get(len(front.objectives), _select)(front)
    reference = measured(front, 0)
    rows = table([row(front, 0, reference)] * 2, heads(reference))
    every = (
        '<label><input type="checkbox" id="every-policy" autocomplete="off"> '
        "every policy's answers, the chosen one's framed</label>"
    )
    return (
        '<section id="slider" hidden><h2>Move the weights</h2>'
        f'<div class="steer"><div class="control">{control}</div>{rows}</div>'
        '<p class="note">Only measured points can be chosen; a ring marks the chosen one in the chart. '
        f"{every if responses and responses.shown else ''}</p></section>"
    )


def slider_data(front: Front) -> dict[str, Any]:
    """What the script shows: an entry a policy, in the order of the table, and the point to begin with."""
    entries = [
        {
            "title": visible(policy_title(front, i)),
            "flag": flag(front, i),
            "colour": colours(front)[i],
            "facts": [[fact.value, fact.detail] for fact in measured(front, i)],
        }
        for i in range(len(front.points) + 1)
    ]
    return {"policies": entries, "start": _start(front)}


def _start(front: Front) -> int:
    """The point whose weights are the most even."""
    spread = [sum(weight**2 for weight in _weights(front, point)) for point in policies(front)[1:]]
    return 1 + spread.index(min(spread))


def _weights(front: Front, point: Point) -> list[float]:
    return [(point.weights or {}).get(objective.name, 0.0) for objective in front.objectives]


def _range(front: Front) -> str:
    """To the right the first objective weighs more, as in the chart."""
    first, second = (escape(objective.name) for objective in front.objectives)
    count = len(front.points)
    ticks = "".join(f'<option value="{i}"></option>' for i in range(1, count + 1))
    return (
        f'<label for="weights">Weights of {first} and {second}</label>'
        f'<input type="range" id="weights" min="1" max="{count}" step="1" list="measured" autocomplete="off">'
        f'<datalist id="measured">{ticks}</datalist>'
        f'<div class="ends"><span>← {second}</span><span>{first} →</span></div>'
    )


def _select(front: Front) -> str:
    options = "".join(
        f'<option value="{i}">{escape(policy_title(front, i))}</option>' for i in range(1, len(front.points) + 1)
    )
    return f'<label for="weights">Weights</label><select id="weights" autocomplete="off">{options}</select>'


def _triangle(front: Front) -> str:
    """Each point at its barycentric coordinates; an objective alone is a corner."""
    height, left, top = SIDE * math.sqrt(3) / 2, 24.0, 26.0
    corners = [(left + SIDE / 2, top), (left, top + height), (left + SIDE, top + height)]
    dots = []
    for point in policies(front)[1:]:
        weights = _weights(front, point)
        x, y = (sum(w * corner[axis] for w, corner in zip(weights, corners, strict=True)) for axis in (0, 1))
        dots.append(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="5"></circle>')
    outline = " ".join(f"{x:.2f},{y:.2f}" for x, y in corners)
    places = [(corners[0][0], top - 12, "middle"), (2.0, top + height + 22, "start"), (238.0, top + height + 22, "end")]
    names = "".join(
        f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{escape(_cut(objective.name))}</text>'
        for objective, (x, y, anchor) in zip(front.objectives, places, strict=True)
    )
    return (
        '<span id="weights-label">Weights: drag, or use the arrow keys</span>'
        '<svg id="weights" viewBox="0 0 240 222" role="slider" tabindex="0" aria-labelledby="weights-label" '
        f'aria-valuemin="1" aria-valuemax="{len(front.points)}"><polygon points="{outline}"></polygon>'
        f"{''.join(dots)}{names}</svg>"
    )


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_CORNER else name[: LONGEST_CORNER - 1] + "…"
