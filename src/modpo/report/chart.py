"""The interactive chart: the picture's panels as a plotly figure, one trace a policy and panel."""

from __future__ import annotations

from typing import Any

from modpo.front.schema import Front
from modpo.report.escape import escape
from modpo.report.facts import kl_error
from modpo.report.numbers import interval_text, number
from modpo.report.panels import Axis, Layout, Panel, layout
from modpo.report.policies import Policy, policies

UNNAMED = {"hoverinfo": "skip", "showlegend": False}  # a trace that is no policy


def chart(front: Front) -> dict[str, Any]:
    """`data` and `layout` for Plotly.newPlot, as plain JSON; `chart.js` adds the look that all charts share."""
    from plotly.subplots import make_subplots

    plan, shown = layout(front), policies(front)
    hovers = [_hover(front, policy) for policy in shown]
    figure = make_subplots(
        plan.rows,
        plan.columns,
        specs=_cells(plan),
        column_widths=plan.column_widths,
        horizontal_spacing=0.09,
        vertical_spacing=0.14 if plan.rows > 1 else 0,
    )
    for panel in plan.panels:
        row, column = panel.row + 1, panel.column + 1
        marks = [_mark(panel, i, policy, hovers[i]) for i, policy in enumerate(shown)]
        traces = [_line(panel), *marks, _ring(panel)]
        figure.add_traces(traces, rows=row, cols=column)
        figure.update_xaxes(_axis(panel.x, panel.x.short_title), row=row, col=column)
        y_title = panel.y.title if panel.row_span > 1 else panel.y.short_title
        figure.update_yaxes(_axis(panel.y, y_title), row=row, col=column)
    figure.update_layout(template="none", height=620 if plan.columns < 3 else 360 * plan.rows + 60)
    drawn: dict[str, Any] = figure.to_plotly_json()
    return drawn


def _cells(plan: Layout) -> list[list[dict[str, int] | None]]:
    cells: list[list[dict[str, int] | None]] = [[None] * plan.columns for _ in range(plan.rows)]
    for panel in plan.panels:
        cells[panel.row][panel.column] = {"rowspan": panel.row_span}
    return cells


def _axis(axis: Axis, title: str) -> dict[str, Any]:
    return {
        "title": {"text": escape(title), "standoff": 8},
        "autorange": "reversed" if axis.reversed else True,
        "zeroline": False,
        "showline": True,
        "automargin": True,
    }


def _line(panel: Panel) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [panel.x.values[i] for i in panel.line],
        "y": [panel.y.values[i] for i in panel.line],
        "line": {"color": "#a1a1aa", "width": 1.5},
        **UNNAMED,
    }


def _mark(panel: Panel, i: int, policy: Policy, hover: str) -> dict[str, Any]:
    """One trace a policy, so that the legend hides and shows it in all panels; its name stands there once."""
    return {
        "type": "scatter",
        "mode": "markers+text" if panel.row_span > 1 or panel.x.is_score else "markers",
        "name": escape(policy.title),
        "legendgroup": str(i),
        "showlegend": panel.row == panel.column == 0,
        "x": [panel.x.values[i]],
        "y": [panel.y.values[i]],
        "error_x": _bars(panel.x, i, policy.colour),
        "error_y": _bars(panel.y, i, policy.colour),
        "marker": {
            "symbol": "star" if policy.is_reference else "circle-open" if policy.faded else "circle",
            "size": 13 if policy.is_reference else 10,
            "color": policy.colour,
            "line": {"width": 2 if policy.faded else 0, "color": policy.colour},
        },
        "opacity": 0.6 if policy.faded else 1.0,
        "text": [escape(policy.mark)],
        "textposition": "top right",
        "textfont": {"size": 10},
        "hovertemplate": f"{hover}<extra></extra>",
    }


def _ring(panel: Panel) -> dict[str, Any]:
    """Around the policy that the slider has chosen. There is one around each, unseen: axes stay as it moves."""
    return {
        "type": "scatter",
        "mode": "markers",
        "meta": "ring",
        "x": panel.x.values,
        "y": panel.y.values,
        "marker": {
            "symbol": "circle-open",
            "size": 22,
            "line": {"width": 2.5},
            "opacity": [0] * len(panel.x.values),
        },
        **UNNAMED,
    }


def _bars(axis: Axis, i: int, colour: str) -> dict[str, Any]:
    down, up = axis.bar(i)
    return {
        "type": "data",
        "symmetric": False,
        "array": [up],
        "arrayminus": [down],
        "color": colour,
        "thickness": 1.2,
        "width": 0,
    }


def _hover(front: Front, policy: Policy) -> str:
    point = policy.point
    lines = [f"<b>{escape(policy.title)}</b>"]
    for objective in front.objectives:
        score = point.scores[objective.name]
        unit = f" {objective.unit}" if objective.unit else ""
        lines.append(escape(f"{objective.name} {interval_text(score.mean, score.ci_low, score.ci_high)}{unit}"))
    lines.append(f"KL {number(point.kl.mean)} {kl_error(policy)} nats per answer")
    lines.append(f"length {number(point.response_length.mean)} tokens")
    lines += ["dominated by another point"] * point.dominated
    lines += [f"{policy.flag}, by its audit"] if policy.flag else []
    return "<br>".join(lines).replace("%{", "%&#123;")  # a name is no template
