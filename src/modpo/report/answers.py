"""The report's side-by-side answers: for each prompt a row of cards, one a policy, the reference first."""

from __future__ import annotations

from modpo.data.prompt_group import Text
from modpo.front.schema import Front, FrontObjective
from modpo.report.escape import escape
from modpo.report.numbers import number
from modpo.report.panels import colours, policies, policy_title
from modpo.report.responses import FILE, PromptAnswers, Response, Responses


def answers_section(front: Front, responses: Responses | None) -> str:
    """The whole section; without a file of responses, a line that says so."""
    if responses is None or not responses.shown:
        body = f'<p class="note">No answers: there is no {FILE} in this folder, or it is empty.</p>'
        return f'<section id="answers"><h2>Answers</h2>{body}</section>'
    shown = len(responses.shown)
    notes = [f"The first {shown} of {responses.prompts} prompts, each policy's first answer: nothing is picked."]
    if responses.strangers:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(responses.strangers.items()))
        notes.append(f"Not shown, since front.json does not know the policy: {names}.")
    body = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    body += "".join(_prompt(front, group) for group in responses.shown)
    return f'<section id="answers"><h2>Answers</h2>{body}</section>'


def _prompt(front: Front, group: PromptAnswers) -> str:
    cards = "".join(_card(front, i, group) for i in range(len(front.points) + 1))
    return f'<article>{_prompt_text(group.prompt)}<div class="cards" tabindex="0">{cards}</div></article>'


def _prompt_text(prompt: Text) -> str:
    if isinstance(prompt, str):
        return f'<h3 dir="auto">{escape(prompt)}</h3>'
    turns = (
        f'<p dir="auto"><span class="role">{escape(message["role"])}</span>{escape(message["content"])}</p>'
        for message in prompt
    )
    return f'<div class="turns" role="heading" aria-level="3">{"".join(turns)}</div>'


def _card(front: Front, i: int, group: PromptAnswers) -> str:
    """The i-th policy's answer."""
    head = f'<h4 style="border-color:{colours(front)[i]}">{escape(policy_title(front, i))}</h4>'
    answer = group.answers.get(policies(front)[i].name)
    if answer is None:
        return f'<div class="card" data-policy="{i}">{head}<p class="note">no answer</p></div>'
    text = escape(answer.response) or '<span class="note">empty</span>'
    body = f'<div class="text" dir="auto">{text}</div>{_facts(front, answer, group)}'
    return f'<div class="card" data-policy="{i}">{head}{body}</div>'


def _facts(front: Front, answer: Response, group: PromptAnswers) -> str:
    """Rewards, each compared with the reference's answer; KL and length."""
    reference = group.answers.get(front.reference.name)
    facts = []
    for objective in front.objectives:
        reward = answer.rewards.get(objective.name)
        shown = "–" if reward is None else f"{number(reward)}{' ' + objective.unit if objective.unit else ''}"
        verdict = _verdict(objective, reward, reference.rewards.get(objective.name) if reference else None)
        facts.append((escape(objective.name), escape(shown) + verdict))
    if answer.kl is not None:
        facts.append(("KL", f"{number(answer.kl)} nats"))
    if answer.tokens is not None:
        facts.append(("length", f"{answer.tokens} tokens"))
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts) + "</dl>"


def _verdict(objective: FrontObjective, reward: float | None, reference: float | None) -> str:
    if reward is None or reference is None or reward == reference:
        return ""
    word = "better" if (reward > reference) == objective.maximize else "worse"
    return f' <span class="{word}">{word}</span>'
