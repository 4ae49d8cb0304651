"""A comparison as a table: on the console, and as Markdown with the command that made it."""

from __future__ import annotations

from collections.abc import Mapping

from modpo.base.progress import duration
from modpo.base.text import printable, redacted
from modpo.comparison.result import Comparison, MethodResult
from modpo.report.numbers import interval_text, number, percent

WIDTH = 120  # where standard output is no terminal
HEADS = (
    "method",
    "hypervolume",
    "to MODPO's",
    "above the reference",
    "time",
    "tokens trained",
    "generated",
    "device-hours a model",
    "seeds",
)


def rows(comparison: Comparison) -> list[list[str]]:
    """A row a method, the cells in the order of `HEADS`."""
    return [_row(comparison, method, result) for method, result in comparison.methods.items()]


def _row(comparison: Comparison, method: str, result: MethodResult) -> list[str]:
    volume, ratio = result.hypervolume, comparison.hypervolume_ratio.get(method)
    gain = result.hypervolume_above_reference
    return [
        method,
        interval_text(volume.mean, volume.ci_low, volume.ci_high),
        interval_text(ratio.mean, ratio.ci_low, ratio.ci_high) if ratio else "",
        interval_text(gain.mean, gain.ci_low, gain.ci_high),
        duration(result.cost_seconds),
        number(result.cost_tokens),
        number(result.tokens_generated),
        number(result.device_hours_per_model),
        f"{result.seeds} of {len(comparison.seeds)}",
    ]


def markdown(comparison: Comparison, commit: str) -> str:
    """The table, what it was measured on, and what made it."""
    lines = [_line(HEADS), _line(["---"] * len(HEADS)), *(_line(row) for row in rows(comparison))]
    lines += ["", f"{_measured(comparison)} Made by `{printable(comparison.command)}` at {commit}.", ""]
    lines += [f"{f.method} with seed {f.seed} failed: {printable(f.reason)}" for f in comparison.failed]
    return redacted("\n".join(lines).rstrip() + "\n")


def _measured(comparison: Comparison) -> str:
    return (
        f"Hypervolume of mean scores on {comparison.prompts} held-out prompts, down to "
        f"{_scores(comparison.reference_point)}; above the reference: down to its own scores, "
        f"{_scores(comparison.reference_scores)}. {percent(comparison.confidence)} intervals over seeds and prompts. "
        "Costs are of the whole front from scratch."
    )


def _scores(point: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number(score)}" for name, score in point.items())


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def show(comparison: Comparison) -> None:
    """Print the table on standard output."""
    from rich.text import Text

    from modpo.base.console import add_row, print_page, text_table

    table = text_table(*HEADS)
    for row in rows(comparison):
        add_row(table, *row)
    print_page([table, Text(printable(_measured(comparison)))], WIDTH)
