"""`report.html`: one static file that loads nothing from anywhere. What it shows is in `templates`."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from modpo.base.progress import duration
from modpo.base.text import visible
from modpo.front.ledger import Ledger
from modpo.front.schema import Front, Point
from modpo.report.chart import chart
from modpo.report.facts import audited, measured, trained
from modpo.report.numbers import interval_text, number, percent
from modpo.report.panels import better
from modpo.report.policies import Policy, policies, weights_of
from modpo.report.responses import Responses, verdict


def page(front: Front, responses: Responses | None, png: bytes, ledger: Ledger | None = None) -> str:
    """The whole file."""
    from plotly.offline import get_plotlyjs

    shown = policies(front)
    slider = _slider_data(front, shown) if len(front.points) > 1 else None  # one point leaves nothing to choose
    scripts = [get_plotlyjs().replace("\r\n", "\n"), asset("chart.js"), *([asset("slider.js")] if slider else [])]
    template = environment().get_template("page.html")
    return template.render(
        front=front,
        policies=shown,
        measured=[measured(front, policy) for policy in shown],
        trained=[trained(front, policy) for policy in shown],
        audited=audited(front),
        better_than_reference=sum(_beats(front, point) for point in front.points),
        chart=chart(front),
        slider=slider,
        responses=responses,
        ledger=ledger,
        picture=base64.b64encode(png).decode(),
        digests=[_digest(script) for script in scripts],
        style=Markup(asset("style.css")),
        scripts=[Markup(script) for script in scripts],
    )


def _slider_data(front: Front, shown: Sequence[Policy]) -> dict[str, Any]:
    """What the slider over the measured points shows: an entry a policy, as in the table, and the point to begin with.

    A range input for two objectives, a triangle for three, a select box for any other number. The page's address
    chooses too: `report.html#point=2` opens at the second point of the table. Without JavaScript there is no slider.
    """
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


@functools.cache
def environment() -> jinja2.Environment:
    """Of the templates. A value is escaped where it is shown, its invisible characters spelled out.

    Only Markup is not: macros' results, and the style sheet and scripts, which are this package's own.
    """
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("modpo.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "duration": duration,
        "interval": lambda score: interval_text(score.mean, score.ci_low, score.ci_high),
        "json": json.dumps,
        "number": number,
        "percent": percent,
        "thousands": "{:,}".format,
    }
    made.globals |= {"better": better, "verdict": verdict, "weights_of": weights_of}
    made.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return made


def asset(name: str) -> str:
    """The text of a style sheet or script of this package."""
    return resources.files("modpo.report").joinpath(name).read_text("utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _beats(front: Front, point: Point) -> bool:
    """Whether the point's mean is better than the reference policy's in each objective."""
    gains = {o.name: point.scores[o.name].mean - front.reference.scores[o.name].mean for o in front.objectives}
    return all(gains[o.name] > 0 if o.maximize else gains[o.name] < 0 for o in front.objectives)
