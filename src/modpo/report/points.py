"""The table of points: what was measured of each policy, and what training it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modpo.base.progress import duration
from modpo.front.schema import Front
from modpo.report.escape import escape
from modpo.report.numbers import interval_text, number
from modpo.report.panels import colours, policies, policy_title
from modpo.report.sections import section, table


@dataclass(frozen=True)
class Fact:
    """One cell of a policy's row; nothing in it is escaped."""

    head: str  # of the column
    value: str
    detail: str = ""  # beneath the value


def measured(front: Front, i: int) -> list[Fact]:
    """The i-th policy's scores with intervals, KL and length with standard errors, and audit if there are any."""
    policy = policies(front)[i]
    facts = []
    for objective in front.objectives:
        score = policy.scores[objective.name]
        head = f"{objective.name} ({objective.unit})" if objective.unit else objective.name
        facts.append(Fact(head, *interval_text(score.mean, score.ci_low, score.ci_high).split(" ", 1)))
    about_kl = "at most" if policy.best_of_n else f"± {number(policy.kl.se)}"
    facts.append(Fact("KL (nats)", number(policy.kl.mean), about_kl))
    length = policy.response_length
    facts.append(Fact("length (tokens)", number(length.mean), f"± {number(length.se)}"))
    if _audited(front):
        audit = policy.audit
        facts.append(Fact("audit", *((number(audit.slope), f"R² {audit.r2:.2f}") if audit else ("–", ""))))
    return facts


def _audited(front: Front) -> bool:
    return any(point.audit for point in front.points)


def flag(front: Front, i: int) -> str:
    """What the audit found wrong with the i-th policy, if anything."""
    audit = policies(front)[i].audit
    return audit.verdict if audit else ""


def points_section(front: Front) -> str:
    """Every policy, the reference first."""
    rows = [row(front, i, [*measured(front, i), *_training(front, i)]) for i in range(len(front.points) + 1)]
    note = (
        "Audit: the slope of beta (D(y) − D(y')) on the weighted reward differences, over two held-out answers to a "
        "prompt, and R². Both are 1 for the optimum that the policy claims to be; a slope near 0 is undertrained, a "
        "negative one broken."
    )
    body = table(rows, heads([*measured(front, 0), *_training(front, 0)]))
    return section("Points", body + (f'<p class="note">{escape(note)}</p>' if _audited(front) else ""))


def _training(front: Front, i: int) -> list[Fact]:
    """What the i-th policy took, unless one training gave all, and what it brought."""
    policy, trained = policies(front)[i], i > 0
    cost = (duration(policy.cost.seconds), f"{policy.cost.tokens:,} tokens") if trained else ("–",)
    added = policy.hypervolume_contribution
    facts = [] if front.continuous else [Fact("training", *cost)]
    facts.append(Fact("hypervolume added", "–" if added is None else number(added)))
    return [*facts, Fact("dominated", "yes" if policy.dominated else "no")]


def heads(facts: Sequence[Fact]) -> str:
    """The cells over `row`."""
    return "".join(f'<th scope="col">{escape(text)}</th>' for text in ["policy", *(fact.head for fact in facts)])


def row(front: Front, i: int, facts: Sequence[Fact]) -> str:
    """The i-th policy with these facts."""
    dominated, wrong = policies(front)[i].dominated, flag(front, i)
    swatch = f'<span class="swatch" style="background:{colours(front)[i]}"></span>'
    flagged = f' <span class="flag">{wrong}</span>' if wrong else ""
    cells = "".join(f"<td>{escape(fact.value)}<small>{escape(fact.detail)}</small></td>" for fact in facts)
    faded = ' class="faded"' if dominated and i > 0 else ""
    return f'<tr{faded}><th scope="row">{swatch}{escape(policy_title(front, i))}{flagged}</th>{cells}</tr>'
