"""`comparison.png`: the methods' fronts, mean over seeds, drawn with matplotlib. Up and right are better."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from modpo.comparison.result import Comparison
from modpo.front.pareto import Score
from modpo.front.schema import FrontObjective
from modpo.report.escape import short
from modpo.report.labels import place_labels
from modpo.report.numbers import percent
from modpo.report.picture import DPI, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which stay apart for every kind of colour vision; yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
REFERENCE_COLOUR = "#52525b"

Pair = tuple[FrontObjective, FrontObjective]


def picture(comparison: Comparison) -> bytes:
    """The PNG file: a panel for every two objectives."""
    import matplotlib
    from matplotlib.figure import Figure

    pairs = list(itertools.combinations(comparison.objectives, 2))
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in scripts that the font lacks
        size = (8.0, 6.0) if len(pairs) == 1 else (5.0 * columns, 4.2 * rows + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        axes = [figure.add_subplot(rows, columns, i + 1) for i in range(len(pairs))]
        for ax, pair in zip(axes, pairs, strict=True):
            _draw(ax, pair, comparison)
        figure.suptitle(_title(comparison), fontsize=10, color="#18181b", x=0.01, ha="left")
        figure.draw_without_rendering()  # settles the layout, so that pixels are known ...
        figure.set_layout_engine("none")  # ... and stay what they are
        for ax, pair in zip(axes, pairs, strict=True):
            _label(ax, pair, comparison)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DPI, facecolor="white")
    return file.getvalue()


def _title(comparison: Comparison) -> str:
    seeds = {result.seeds for result in comparison.methods.values()}
    count = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    noun = "seed" if seeds == {1} else "seeds"
    return f"Mean scores over {count} {noun}, {percent(comparison.confidence)} intervals over seeds and prompts"


def _draw(ax: Axes, pair: Pair, comparison: Comparison) -> None:
    for i, method in enumerate(comparison.methods):
        x, y = (_scores(comparison, method, objective) for objective in pair)
        line = "-" if len(comparison.objectives) == 2 else "none"  # with more, the vectors have no order
        ax.errorbar(
            [score.mean for score in x],
            [score.mean for score in y],
            xerr=_lengths(x),
            yerr=_lengths(y),
            color=_colour(i),
            marker=MARKERS[i % len(MARKERS)],
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linestyle=line,
            linewidth=1.3,
            elinewidth=0.7,
        )
    ax.plot(*_reference(comparison, pair), marker="*", markersize=15, color=REFERENCE_COLOUR, markeredgecolor="white")
    ax.margins(0.12)
    for objective, axis in zip(pair, (ax.xaxis, ax.yaxis), strict=True):
        unit = f"{short(objective.unit)}, " if objective.unit else ""
        direction = "higher is better" if objective.maximize else "lower is better"
        axis.set_label_text(f"{short(objective.name)} ({unit}{direction}) →")
        axis.set_inverted(not objective.maximize)


def _scores(comparison: Comparison, method: str, objective: FrontObjective) -> list[Score]:
    """A method's scores, by falling weight of the first objective."""
    first = comparison.objectives[0].name
    points = sorted(comparison.methods[method].points, key=lambda point: -point.weights.get(first, 0.0))
    return [point.scores[objective.name] for point in points]


def _lengths(scores: Sequence[Score]) -> np.ndarray:
    """Down and up from each mean, (2, P); a percentile interval need not hold it."""
    return np.maximum([[s.mean - s.ci_low for s in scores], [s.ci_high - s.mean for s in scores]], 0.0)


def _reference(comparison: Comparison, pair: Pair) -> tuple[float, float]:
    x, y = (comparison.reference_scores[objective.name] for objective in pair)
    return x, y


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _label(ax: Axes, pair: Pair, comparison: Comparison) -> None:
    """Each method's name beside that of its points that is furthest from the others'; needs the final layout."""
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    figure = ax.figure.get_figure(root=True)
    to_pixels, unit, size = ax.transData.transform, figure.dpi / 72, 9.5
    fronts = [
        to_pixels(np.array([[s.mean for s in _scores(comparison, method, o)] for o in pair]).T)
        for method in comparison.methods
    ]
    reference = to_pixels([_reference(comparison, pair)])
    everywhere = [*fronts, reference]
    labels = [*comparison.methods, "reference"]
    colours = [*(_colour(i) for i in range(len(fronts))), REFERENCE_COLOUR]
    points = np.array([_most_alone(own, [o for o in everywhere if o is not own]) for own in everywhere])
    extents = [Text(0, 0, label, fontsize=size, figure=figure).get_window_extent() for label in labels]
    sizes = np.array([(extent.width, extent.height) for extent in extents])
    segments = [np.array(ends) for front in fronts for ends in itertools.pairwise(front)]
    segments += [np.array([point, point]) for front in everywhere for point in front]
    offsets = place_labels(points, sizes, segments, ax.bbox.extents, unit=unit)
    for label, colour, point, offset in zip(labels, colours, points, offsets, strict=True):
        ax.annotate(
            label,
            tuple(ax.transData.inverted().transform(point)),
            xytext=offset / unit,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            fontweight="bold",
            color=colour,
            zorder=4,
            path_effects=[withStroke(linewidth=2.4, foreground="white")],
        )


def _most_alone(own: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """The point of `own` (P, 2) with the largest distance to the nearest of all other points."""
    rest = np.concatenate(list(others))
    nearest = np.linalg.norm(own[:, None] - rest[None], axis=2).min(axis=1)
    found: np.ndarray = own[np.argmax(nearest)]
    return found
