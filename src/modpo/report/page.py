"""`report.html`: one static file that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from modpo.base.costs import Cost
from modpo.base.progress import duration
from modpo.front.ledger import Ledger
from modpo.front.schema import Front, FrontObjective, Point
from modpo.report.answers import answers_section
from modpo.report.chart import chart
from modpo.report.costs import cost_section
from modpo.report.escape import embed_json, escape
from modpo.report.numbers import interval_text, number, percent
from modpo.report.points import points_section
from modpo.report.responses import Responses
from modpo.report.sections import section, table
from modpo.report.slider import has_slider, slider_data, slider_section
from modpo.report.slider_script import SLIDE
from modpo.report.style import STYLE

DRAW = """
const spec = JSON.parse(document.getElementById("chart-data").textContent);
const chart = document.getElementById("chart");
const rings = spec.data.flatMap((trace, i) => trace.meta === "ring" ? [i] : []);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function recolour() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const rule = style.getPropertyValue("--rule").trim();
  const changes = {"font.color": ink};
  for (const key of Object.keys(spec.layout).filter((key) => /^[xy]axis/.test(key))) {
    changes[key + ".gridcolor"] = rule;
    changes[key + ".linecolor"] = rule;
    changes[key + ".tickcolor"] = rule;
  }
  return Plotly.update(chart, {"marker.color": ink}, changes, rings);
}
const drawn = Plotly.newPlot(chart, spec.data, spec.layout, spec.config).then(recolour);
dark.addEventListener("change", recolour);
"""


def page(front: Front, responses: Responses | None, png: bytes, ledger: Ledger | None = None) -> str:
    """The whole file. Every text that is not this module's own goes through `escape` or `embed_json`."""
    from plotly.offline import get_plotlyjs

    data, scripts = {"chart-data": chart(front)}, [get_plotlyjs().replace("\r\n", "\n"), DRAW]
    if has_slider(front):
        data["slider-data"] = slider_data(front)
        scripts.append(SLIDE)
    title = f"Front of {_count(len(front.points), 'policy', 'policies')}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_content_policy(scripts)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}: {escape(', '.join(o.name for o in front.objectives))}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            f"<header><h1>{title}</h1>{_summary(front)}</header>",
            "<main>",
            _chart_section(front, png),
            slider_section(front, responses),
            points_section(front),
            _failed_section(front),
            answers_section(front, responses),
            cost_section(ledger),
            _settings_section(front),
            "</main>",
            *(_data(key, value) for key, value in data.items()),
            *(f"<script>{script}</script>" for script in scripts),
            "</body>",
            "</html>",
            "",
        ]
    )


def _data(key: str, value: Any) -> str:
    return f'<script type="application/json" id="{key}">{embed_json(value)}</script>'


def _content_policy(scripts: list[str]) -> str:
    """Only the scripts written here run, known by their hash; nothing is fetched. Plotly sets styles as it draws."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _summary(front: Front) -> str:
    names = [f"<b>{escape(o.name)}</b> ({escape(_direction(o))})" for o in front.objectives]
    settings, volume, points = front.evaluation, front.hypervolume, front.points
    start = f" from {escape(str(settings['model']))}" if "model" in settings else ""
    prompts = f", measured on {escape(str(settings['prompts']))} held-out prompts" if "prompts" in settings else ""
    corner = ", ".join(f"{escape(name)} {number(value)}" for name, value in volume.reference_point.items())
    kept = sum(not point.dominated for point in points)
    better = sum(_beats(front, point) for point in points)
    made = next((f"of best of {point.best_of_n}" for point in points if point.best_of_n), "trained")
    lines = [
        f"{_count(len(points), 'policy', 'policies')} {made}{start} for {' and '.join(names)}{prompts}.",
        f"Hypervolume <b>{interval_text(volume.mean, volume.ci_low, volume.ci_high)}</b> "
        f"({percent(settings.get('confidence'))} interval), down to the reference point {corner}.",
        f"{kept} of {len(points)} non-dominated; {better} of {len(points)} beat the reference policy "
        f"in {'every objective' if len(names) > 1 else 'its objective'}, by their means.",
    ]
    if front.continuous:
        lines.insert(1, _one_training(front.continuous))
    return "".join(f"<p>{line}</p>" for line in lines)


def _one_training(cost: Cost) -> str:
    took = f"{duration(cost.seconds)} and {cost.tokens:,} tokens"
    return f"All come from one training, of a continuous policy, which took {took}."


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _direction(objective: FrontObjective) -> str:
    unit = f"{objective.unit}, " if objective.unit else ""
    return f"{unit}{'higher' if objective.maximize else 'lower'} is better"


def _beats(front: Front, point: Point) -> bool:
    """Whether the point's mean is better than the reference policy's in each objective."""
    gains = {o.name: point.scores[o.name].mean - front.reference.scores[o.name].mean for o in front.objectives}
    return all(gains[o.name] > 0 if o.maximize else gains[o.name] < 0 for o in front.objectives)


def _chart_section(front: Front, png: bytes) -> str:
    picture = base64.b64encode(png).decode()
    confidence = percent(front.evaluation.get("confidence"))
    return section(
        "Front",
        '<div class="scroll"><div id="chart"></div></div>'
        f'<noscript><img alt="The front, and scores against KL" src="data:image/png;base64,{picture}"></noscript>'
        f'<p class="note">Up and right are better. Bars: {confidence} intervals of scores, one standard error of KL. '
        "A hollow marker is dominated by another point; the star is the reference policy. "
        "Click a name to hide or show it.</p>",
    )


def _failed_section(front: Front) -> str:
    if not front.failed:
        return ""
    return section("Failed points", table([_fact(point.name, point.reason) for point in front.failed]))


def _settings_section(front: Front) -> str:
    facts = [(f"objective {o.name}", _measure(o)) for o in front.objectives]
    facts += [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in front.evaluation.items()]
    return section("How it was measured", table([_fact(*fact) for fact in facts]))


def _measure(objective: FrontObjective) -> str:
    by = f" on a proxy, {objective.proxy}," if objective.proxy else ""
    said = [f"{_direction(objective)}, trained{by} with scale {objective.scale:g}"]
    if objective.measured_by:
        apart = ", which it was not trained on" if objective.separate else ""
        said.append(f"measured by {objective.measured_by}{apart}")
    fitted, accuracy = objective.calibration, objective.held_out
    if fitted.method != "none":
        numbers = f"{fitted.factor:.4g} * (reward - {fitted.center:.4g})"
        said.append(f"calibrated as {numbers}, by {fitted.method} on {fitted.fitted_on}")
    if accuracy:
        spread = f"{accuracy.accuracy:.3f} ± {accuracy.se:.3f}"
        said.append(f"orders {spread} of {accuracy.pairs} held-out pairs ({accuracy.prompts} prompts) as labelled")
    return "; ".join(said)


def _fact(name: str, value: str) -> str:
    return f'<tr><th scope="row">{escape(name)}</th><td class="prose">{escape(value)}</td></tr>'
