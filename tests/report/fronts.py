"""Fronts of up to four objectives with answers beside them, and a page as a browser would see it."""

import json
from html.parser import HTMLParser

from modpo.base.costs import Cost
from modpo.base.simplex import lattice, name
from modpo.front.pareto import Hypervolume, Score
from modpo.front.schema import Estimate, Front, FrontObjective, Point

OBJECTIVES = [
    FrontObjective("positive", True, "VADER compound", 4.0, "quickstart:positive"),
    FrontObjective("concise", False, "words", 0.05, "quickstart:words"),
    FrontObjective("$afe <b>", True, ""),
    FrontObjective("kind", True, "reward"),
]


def make_front(folder, objectives=2, steps=2):
    """A front whose scores grow with their weight; the point in the middle of two objectives is dominated."""
    chosen = OBJECTIVES[:objectives]

    def policy(name, weights, index):
        scores = {}
        for o in chosen:
            gain = 0.1 + (weights or {}).get(o.name, -0.1)
            mean = gain if o.maximize else 100 - 50 * gain
            scores[o.name] = Score(mean, mean - 0.05, mean + 0.08)
        middle = weights is not None and min(weights.values()) > 0
        trained = {"weights": weights, "hypervolume_contribution": 0.5, "adapter": f"points/{name}"} if weights else {}
        kl, length, cost = Estimate(3.0 + index, 0.4), Estimate(40.0, 2.0), Cost(3725.0, 1_200_000)
        return Point(name, scores, kl, length, cost, dominated=middle, **trained)

    vectors = lattice([o.name for o in chosen], steps)
    corner = {o.name: 0.0 for o in chosen}
    return Front(
        folder=folder,
        objectives=chosen,
        reference=policy("reference", None, -3),
        points=[policy(name(w), w, i) for i, w in enumerate(vectors)],
        hypervolume=Hypervolume(48.91, 45.2, 54.0, corner),
        evaluation={"prompts": 64, "confidence": 0.95, "seed": 0, "report_prompts": 3},
    )


def write_responses(front, prompts, answer):
    lines = [
        {
            "policy": policy.name,
            "weights": policy.weights,
            "prompt": prompt,
            "response": answer(policy.name, i),
            "rewards": {o.name: 0.25 * i for o in front.objectives},
            "kl": 1.5,
            "tokens": 7,
        }
        for i, prompt in enumerate(prompts)
        for policy in [front.reference, *front.points]
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (front.folder / "responses.jsonl").write_text(text, encoding="utf-8")


class Page(HTMLParser):
    """What a browser would see: elements with attributes, and the text in each."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]
