"""What the tables say of a policy: what was measured of it, and the cost of its training."""

from __future__ import annotations

from dataclasses import dataclass

from modpo.base.progress import duration
from modpo.front.schema import Front
from modpo.report.numbers import interval_text, number
from modpo.report.policies import Policy


@dataclass(frozen=True)
class Fact:
    """One cell of a policy's row."""

    head: str  # of the column
    value: str
    detail: str = ""  # beneath the value


def measured(front: Front, policy: Policy) -> list[Fact]:
    """Scores with intervals, KL and length with standard errors, and the audit if the front has any."""
    point, facts = policy.point, []
    for objective in front.objectives:
        score = point.scores[objective.name]
        head = f"{objective.name} ({objective.unit})" if objective.unit else objective.name
        facts.append(Fact(head, *interval_text(score.mean, score.ci_low, score.ci_high).split(" ", 1)))
    facts.append(Fact("KL (nats)", number(point.kl.mean), kl_error(policy)))
    facts.append(Fact("length (tokens)", number(point.response_length.mean), f"± {number(point.response_length.se)}"))
    if audited(front):
        audit = point.audit
        facts.append(Fact("audit", *((number(audit.slope), f"R² {audit.r2:.2f}") if audit else ("–", ""))))
    return facts


def kl_error(policy: Policy) -> str:
    """How the KL that is shown relates to the true one."""
    return "at most" if policy.point.best_of_n else f"± {number(policy.point.kl.se)}"


def audited(front: Front) -> bool:
    """Whether any point has an audit."""
    return any(point.audit for point in front.points)


def trained(front: Front, policy: Policy) -> list[Fact]:
    """The policy's cost, unless one training gave all, and its contribution."""
    point = policy.point
    cost = ("–",) if policy.is_reference else (duration(point.cost.seconds), f"{point.cost.tokens:,} tokens")
    added = point.hypervolume_contribution
    facts = [] if front.continuous else [Fact("training", *cost)]
    facts.append(Fact("hypervolume added", "–" if added is None else number(added)))
    return [*facts, Fact("dominated", "yes" if point.dominated else "no")]
