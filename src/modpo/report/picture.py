"""`front.png`: the front and reward against KL, drawn with matplotlib."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from modpo.front.schema import Front
from modpo.report.escape import short
from modpo.report.labels import place_labels
from modpo.report.numbers import interval_text
from modpo.report.panels import Layout, Panel, layout
from modpo.report.policies import REFERENCE_COLOUR, Policy, policies, weights_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
STYLE: Any = {  # matplotlib's rcParams
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#52525b",
    "axes.labelcolor": "#27272a",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e7",
    "grid.linewidth": 0.7,
    "xtick.color": "#52525b",
    "ytick.color": "#52525b",
    "text.parse_math": False,  # a `$` in an objective's name is a dollar
}


def picture(front: Front) -> bytes:
    """The PNG file."""
    import matplotlib
    from matplotlib.figure import Figure

    plan, shown = layout(front), policies(front)
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in scripts that the font lacks
        figure = Figure(figsize=_size(plan), layout="constrained")
        axes = _axes(figure, plan)
        for panel, ax in zip(plan.panels, axes, strict=True):
            _draw(ax, panel, shown)
        _head(figure, front)
        _legend(figure, front)
        figure.draw_without_rendering()  # settles the layout, so that pixels are known ...
        figure.set_layout_engine("none")  # ... and stay what they are
        for panel, ax in zip(plan.panels, axes, strict=True):
            _label(ax, panel, shown)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI, facecolor="white")
    return file.getvalue()


def _size(plan: Layout) -> tuple[float, float]:
    if plan.columns == 1:
        return 7.0, 5.4
    return (11.5, 6.4) if plan.columns == 2 else (4.0 * plan.columns, 3.3 * plan.rows + 1.0)


def _axes(figure: Figure, plan: Layout) -> list[Axes]:
    grid = figure.add_gridspec(plan.rows, plan.columns, width_ratios=plan.column_widths)
    return [figure.add_subplot(grid[p.row : p.row + p.row_span, p.column]) for p in plan.panels]


def _draw(ax: Axes, panel: Panel, shown: Sequence[Policy]) -> None:
    """Every policy with its intervals: a hollow, paler marker if dominated, a star for the reference."""
    x, y, large = panel.x, panel.y, panel.row_span > 1
    line = [x.values[i] for i in panel.line], [y.values[i] for i in panel.line]
    ax.plot(*line, color="#a1a1aa", linewidth=1.2, zorder=1)
    for i, policy in enumerate(shown):
        edge = _paler(policy.colour) if policy.faded else policy.colour
        ax.errorbar(
            x.values[i],
            y.values[i],
            xerr=[[length] for length in x.bar(i)],
            yerr=[[length] for length in y.bar(i)],
            fmt="none",
            ecolor=edge,
            elinewidth=1.1,
            zorder=2,
        )
        ax.plot(
            x.values[i],
            y.values[i],
            marker="*" if policy.is_reference else "o",
            markersize=(7.5 if large else 5.5) * (1.9 if policy.is_reference else 1),
            markerfacecolor="white" if policy.faded else edge,
            markeredgecolor=edge if policy.faded else "white",
            markeredgewidth=1.4 if policy.faded else 0.8,
            zorder=3,
        )
    ax.margins(0.1)
    if x.reversed:
        ax.invert_xaxis()
    if y.reversed:
        ax.invert_yaxis()
    ax.set_xlabel(x.title)
    ax.set_ylabel(y.title if large else y.short_title)
    if panel.title:
        ax.set_title(panel.title, loc="left", fontsize=9.5, color="#3f3f46")


def _paler(colour: str) -> str:
    """Half way to white, opaque."""
    return "#" + "".join(f"{(int(colour[i : i + 2], 16) + 255) // 2:02x}" for i in (1, 3, 5))


def _label(ax: Axes, panel: Panel, shown: Sequence[Policy]) -> None:
    """Each policy's mark beside it; needs the figure's final layout."""
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    labels, size = [policy.mark for policy in shown], 8.5 if panel.row_span > 1 else 7.0
    figure = ax.figure.get_figure(root=True)
    extents = [Text(0, 0, label, fontsize=size, figure=figure).get_window_extent() for label in labels]
    sizes = np.array([(extent.width, extent.height) for extent in extents])
    points = np.column_stack([panel.x.values, panel.y.values])
    to_pixels, unit = ax.transData.transform, figure.dpi / 72
    segments = [to_pixels(ends) for ends in _segments(panel)]
    offsets = place_labels(to_pixels(points), sizes, segments, ax.bbox.extents, unit=unit)
    gaps = np.linalg.norm(np.maximum(np.abs(offsets) - sizes / 2, 0), axis=1)
    for label, point, offset, gap in zip(labels, points, offsets, gaps, strict=True):
        leader = {"arrowstyle": "-", "color": "#a1a1aa", "linewidth": 0.6, "shrinkB": 4}
        ax.annotate(
            label,
            point,
            xytext=offset / unit,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color="#3f3f46",
            arrowprops=leader if gap > 14 * unit else None,
            zorder=4,
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
        )


def _segments(panel: Panel) -> list[list[tuple[float, float]]]:
    """Both ends of all that is drawn as a line: error bars, and the line between points."""
    x, y = panel.x, panel.y
    centres = list(zip(x.values, y.values, strict=True))
    across = [[(x.low[i], b), (x.high[i], b)] for i, (_, b) in enumerate(centres)]
    upright = [[(a, y.low[i]), (a, y.high[i])] for i, (a, _) in enumerate(centres)]
    return [*across, *upright, *([centres[i], centres[j]] for i, j in pairwise(panel.line))]


def _head(figure: Figure, front: Front) -> None:
    count, volume = len(front.points), front.hypervolume
    measured = interval_text(volume.mean, volume.ci_low, volume.ci_high)
    title = f"Front of {count} {'policy' if count == 1 else 'policies'}: hypervolume {measured}"
    figure.suptitle(title, fontsize=12, fontweight="bold", color="#18181b")


def _legend(figure: Figure, front: Front) -> None:
    """What the markers mean; with three objectives and more, also which weights each number stands for."""
    from matplotlib.lines import Line2D

    def marker(label: str, colour: str, *, symbol: str = "o", face: str | None = None) -> Line2D:
        return Line2D([], [], ls="", marker=symbol, color=colour, markerfacecolor=face or colour, label=label)

    names = [o.name for o in front.objectives]
    shown = [short(name) for name in names]
    handles = [marker("reference policy", REFERENCE_COLOUR, symbol="*"), marker("non-dominated", "#3f3f46")]
    if any(point.dominated for point in front.points):
        handles.append(marker("dominated by another point", "#a1a1aa", face="white"))
    title = f"labels: weights of {' / '.join(shown)}" if len(names) == 2 else None
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, title=title)
    if len(names) > 2:
        key = [
            Line2D([], [], ls="", label=f"{policy.mark}:  {weights_text(policy.point, names)}")
            for policy in policies(front)[1:]
        ]
        figure.legend(
            handles=key,
            loc="outside right upper",
            frameon=False,
            handlelength=0,
            handletextpad=0,
            title="weights of\n" + " /\n".join(shown),
            fontsize=8,
        )
