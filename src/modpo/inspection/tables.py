"""An inspection as tables, readable from 100 columns on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modpo.base.console import add_row, print_page, text_table
from modpo.base.progress import duration
from modpo.base.simplex import Weights
from modpo.base.text import printable, redacted
from modpo.data.groups import PromptGroups
from modpo.data.prompt_group import UNNAMED
from modpo.experiment.methods import CONTINUOUS
from modpo.experiment.primary import able_objectives
from modpo.experiment.sections import DRAWN, Experiment, Objective, RewardSection
from modpo.inspection.cost import ExpectedCost
from modpo.inspection.inspection import Example, Inspection
from modpo.inspection.reward_statistics import margin_spread
from modpo.inspection.token_statistics import Reading, Spread, TokenStatistics

WIDTH = 100  # where standard output is no terminal
MOST_VECTORS, MOST_RESPONSES, MOST_PAIRS = 20, 6, 10  # lines shown of each
HEAD, TAIL = 150, 90  # characters shown of a long text


def show(inspection: Inspection) -> None:
    """Print an inspection on standard output."""
    print_page(render(inspection), WIDTH)


def render(inspection: Inspection) -> Iterator[RenderableType]:
    """The sections, in the way of the data."""
    experiment = inspection.experiment
    yield from _section("data", experiment.data.path, _data(inspection.train, inspection.held_out))
    sampled, trained = inspection.sampled, len(inspection.train)
    sample = f"a sample of {sampled:,} of {trained:,} prompts" if sampled < trained else f"all {trained:,} prompts"
    yield from _section("tokens", f"{sample}, as they are read", _lengths(inspection.tokens))
    yield Padding(Text("\n".join(_token_lines(inspection))), (0, 2))
    yield from _section("one prompt as it is packed", inspection.example.where, _example(inspection.example))
    yield Padding(_boundary(inspection.example), (0, 2))
    yield from _section("objectives", "", _objectives(experiment))
    if inspection.rewards:
        yield from _section("raw rewards", sample, _rewards(inspection))
    if inspection.correlations:
        yield from _section(
            "correlation", "of rewards, each counted in its better direction", _correlations(inspection)
        )
    if experiment.sweep.weights:
        yield from _section("preference vectors", f"beta {experiment.training.beta:g}", _vectors(experiment))
    if inspection.cost:
        yield from _section(
            "expected", "an estimate, for one process on this machine", _cost(inspection.cost, experiment)
        )
    for warning in inspection.warnings:
        yield Text(f"warning: {printable(warning)}", style="yellow")


def _section(title: str, remark: str, table: Table) -> Iterator[RenderableType]:
    heading = Text(f"\n{title}", style="bold")
    yield heading.append(f"  {printable(remark)}" if remark else "", style="not bold dim")
    yield Padding(table, (0, 2))


# --- data and tokens ----------------------------------------------------------------------------------------


def _data(train: PromptGroups, held_out: PromptGroups) -> Table:
    table = text_table("", "prompts", "rows", "responses", "pairs", "identical pairs", "duplicate rows")
    for name, groups in (("train", train), ("held out", held_out)):
        add_row(table, name, *(f"{count:,}" for count in groups.counts.values()))
    if set(train.label_sets) - {UNNAMED}:
        for name, pairs in train.label_sets.items():
            add_row(table, f"label set {name}", "", "", "", f"{pairs:,}")
    return table


def _lengths(tokens: TokenStatistics) -> Table:
    table = text_table("", "min", "median", "95 %", "max", "truncated")
    rows: list[tuple[str, Spread, int | str]] = [
        ("prompt", tokens.prompts, tokens.prompts_truncated),
        ("response", tokens.responses, tokens.responses_truncated),
        ("prompt and response", tokens.together, ""),
    ]
    for name, spread, truncated in rows:
        numbers = (spread.minimum, spread.median, spread.percentile_95, spread.maximum)
        add_row(table, name, *(f"{number:,.0f}" for number in numbers), truncated)
    return table


def _token_lines(inspection: Inspection) -> list[str]:
    tokens, data, reading = inspection.tokens, inspection.experiment.data, inspection.reading
    cut = tokens.prompts_truncated or tokens.responses_truncated
    lines = [
        f"max_length {data.max_length:,}" + (f"; {inspection.uncut_length:,} would cut nothing" if cut else ""),
        f"responses that share a token with the prompt's end: {tokens.merged_boundary:,}; "
        f"texts that spell out a special token: {tokens.special_in_text:,}",
    ]
    if reading.packed:
        lines.append(_reading(reading, inspection.experiment.training.packs))
    return lines


def _reading(reading: Reading, packing: bool) -> str:
    used = "" if packing else " (`packing: false`: not used)"
    return (
        f"one epoch reads {reading.packed:,} tokens packed{used}; pair by pair it would be {reading.separate:,}, "
        f"padded as TRL does {reading.padded:,}: {reading.ratio:.1f} times as many"
    )


# --- the example --------------------------------------------------------------------------------------------


def _example(example: Example) -> Table:
    table = text_table("", "row", "positions", "text", left=4)
    span = example.span
    add_row(
        table, "prompt", _range(span.start, span.prompt_end), _range(0, span.prompt_end), _shortened(example.prompt)
    )
    for number, (first, last) in list(enumerate(span.responses))[:MOST_RESPONSES]:
        positions = _range(span.prompt_end, span.prompt_end + last - first)
        text = _ended(example.responses[number], example.ends[number])
        add_row(table, f"response {number}", _range(first, last), positions, text)
    hidden = len(span.responses) - MOST_RESPONSES
    if hidden > 0:
        add_row(table, f"and {hidden} more")
    return table


def _range(first: int, end: int) -> str:
    return f"{first}-{end - 1}" if end > first else "none"


def _shortened(text: str) -> str:
    shown = printable(text)
    if len(shown) <= HEAD + TAIL + 40:
        return shown
    return f"{shown[:HEAD]} [... {len(shown) - HEAD - TAIL:,} characters ...] {shown[-TAIL:]}"


def _ended(text: str, end: str) -> Text:
    """A response with its end standing out. The last token is predicted, and not read."""
    shown = Text(_shortened(text.removesuffix(end) if end else text))
    return shown.append(printable(end), style="reverse bold") if end else shown.append(" [cut: no end]", style="yellow")


def _boundary(example: Example) -> Text:
    pairs = [f"{chosen} over {rejected}" for chosen, rejected in example.pairs]
    more = f" and {len(pairs) - MOST_PAIRS} more" if len(pairs) > MOST_PAIRS else ""
    ends = sorted({end for end in example.ends if end})
    text = example.prompt + example.responses[0]
    before, after = _one_by_one(example.before, text), _one_by_one(example.after, text)
    lines = [
        f"the prompt ends with  {before}  and response 0 begins with  {after}",
        f"each response ends with  {_one_by_one(ends) or 'nothing'}, which is predicted and not read",
        f"pairs: {', '.join(pairs[:MOST_PAIRS]) or 'none'}{more}",
    ]
    return Text("\n".join(lines))


def _one_by_one(tokens: Sequence[str], text: str = "") -> str:
    """Tokens of a text, each in brackets; `***` where they may be a piece of a secret in it."""
    known = redacted(text)
    if known != text and "".join(tokens) not in known:
        return "[***]"
    return " ".join(f"[{printable(token)}]" for token in tokens)


# --- objectives ---------------------------------------------------------------------------------------------


def _objectives(experiment: Experiment) -> Table:
    table = text_table("", "role", "measured by", "better", "calibration", "scale", "unit", left=7)
    for objective in experiment.objectives.values():
        better = "more" if objective.maximize else "less"
        cells = (
            _role(objective),
            measured_by(objective, experiment.evaluation.rewards.get(objective.name)),
            better,
            objective.calibration,
            f"{objective.scale:g}",
            objective.unit,
        )
        add_row(table, objective.name, *cells)
    return table


def _role(objective: Objective) -> str:
    if objective.pairs is None:
        return "margin"
    pairs = "pairs drawn from its reward" if objective.pairs == DRAWN else f"pairs {objective.pairs}"
    return pairs + (" or margin" if objective.reward else "")


def measured_by(objective: Objective, evaluation: RewardSection | None = None) -> str:
    """Where an objective's numbers come from, in a few words."""
    own = objective.reward.description if objective.reward else "pairs alone"
    own += f"; proxy {objective.proxy.description}" if objective.proxy else ""
    return f"{own}; policies by {evaluation.description}" if evaluation else own


def _rewards(inspection: Inspection) -> Table:
    table = text_table("", "mean", "sd", "min", "max", "margin sd", "agrees with pairs", "ties")
    for name, s in inspection.rewards.items():
        scaled = margin_spread(inspection.experiment.objectives[name], s.sd)
        numbers = [f"{number:.4g}" for number in (s.mean, s.sd, s.minimum, s.maximum, scaled)]
        add_row(table, name, *numbers, _share(s.agreement), _share(s.ties))
    return table


def _correlations(inspection: Inspection) -> Table:
    """The upper triangle."""
    *rows, _ = names = list(inspection.rewards)
    table = text_table("", *names[1:])
    for row in rows:
        add_row(table, row, *(_correlation(inspection.correlations.get((row, column))) for column in names[1:]))
    return table


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _correlation(value: float | None) -> str:
    if value is None:
        return ""
    return "constant" if math.isnan(value) else f"{value:+.2f}"


def _vectors(experiment: Experiment) -> Table:
    names = list(experiment.objectives)
    table = text_table("", *names, "objective k", "beta / w_k")
    vectors = experiment.sweep.weights
    for number, weights in enumerate(vectors[:MOST_VECTORS], start=1):
        k = _primary(experiment, weights)
        effective = f"{experiment.training.beta / weights[k]:.3g}" if k else ""
        add_row(table, number, *(f"{weights[name]:.3g}" for name in names), k or "regression", effective)
    if len(vectors) > MOST_VECTORS:
        add_row(table, f"and {len(vectors) - MOST_VECTORS} more")
    return table


def _primary(experiment: Experiment, weights: Weights) -> str | None:
    """Objective k where a prompt has pairs of all label sets; None: regression."""
    with_pairs = {name for name, objective in experiment.objectives.items() if objective.pairs}
    with_reward = {name for name, objective in experiment.objectives.items() if objective.reward}
    named, below = experiment.training.objective, experiment.smallest_primary_weight
    return next(iter(able_objectives(weights, with_pairs, with_reward, named, below)), None)


# --- cost ---------------------------------------------------------------------------------------------------


def _cost(cost: ExpectedCost, experiment: Experiment) -> Table:
    shape, memory = cost.shape, cost.memory
    parts = {
        "weights": memory.weights,
        "gradients and optimizer": memory.training_state,
        "activations": memory.activations,
        "logits": memory.logits,
        "heap": memory.heap,
        "process": memory.process,
    }
    taken = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items() if size)
    trainings = f"{cost.trainings:,} training{'s' if cost.trainings > 1 else ''}"
    work = f"{trainings} of {cost.steps:,} steps read {cost.training.read:,.0f} tokens"
    table = text_table("", "", left=2)
    table.show_header = False
    add_row(table, "of", _estimated(experiment))
    add_row(table, "model", f"{shape.parameters:,} parameters, {shape.trainable:,} trained")
    add_row(table, "peak memory", f"{memory.total / 1e9:.1f} GB: {taken}")
    add_row(table, "", f"the largest forward pass reads {cost.largest.read:,.0f} tokens")
    add_row(table, "work", f"{work}, {cost.training_flops / cost.training.read / 1e9:.3g} GFLOP each")
    add_row(table, "time", f"training {duration(cost.training_seconds)}")
    add_row(table, "", f"before it reference log-probs {duration(cost.scoring_seconds)}, unless they are in the cache")
    add_row(table, "", "rewards, generation and evaluation come on top")
    add_row(table, "measured", f"{cost.rates.matmul / 1e9:,.0f} GFLOP/s in matrix products on this {cost.device}")
    return table


def _estimated(experiment: Experiment) -> str:
    """What the numbers stand for: a sweep by MODPO, whatever else is asked for."""
    sweep, comparison = experiment.sweep, experiment.comparison
    if comparison:
        sweeps = f"{len(comparison.methods)} methods with {len(comparison.seeds)} seeds each"
        return f"one sweep by MODPO; the comparison has sweeps by {sweeps}, and other methods take another time"
    if sweep.method != "modpo":
        return f"a sweep by MODPO; {sweep.method} takes another time and memory"
    return "the continuous policy of all vectors" if sweep.mode == CONTINUOUS else "a sweep by MODPO"
