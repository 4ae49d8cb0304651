"""The weight slider: it moves over the measured points, and the page shows what each of them does.

A range input for two objectives, a triangle for three, a select box for any other number. The page's address chooses
too: `report.html#point=2` opens at the second point of the table. Without JavaScript there is no slider.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modpo.front.schema import Front
from modpo.report.escape import visible
from modpo.report.facts import measured
from modpo.report.policies import Policy, weights_of


def slider_data(front: Front, shown: Sequence[Policy]) -> dict[str, Any]:
    """What the script shows: an entry a policy, in the order of the table, and the point to begin with."""
    entries = [
        {
            "title": visible(policy.title),
            "flag": policy.flag,
            "colour": policy.colour,
            "facts": [[fact.value, fact.detail] for fact in measured(front, policy)],
        }
        for policy in shown
    ]
    names = [o.name for o in front.objectives]
    spread = [sum(weight**2 for weight in weights_of(policy.point, names)) for policy in shown[1:]]
    return {"policies": entries, "start": 1 + spread.index(min(spread))}  # the most even weights
