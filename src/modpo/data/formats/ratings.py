"""Data sets in which every answer is rated by itself: BeaverTails, HelpSteer, UltraFeedback.

Each format raises an InputError that names every field of its layout that is missing or of another kind.
"""

from __future__ import annotations

import re

from modpo.data.formats.fields import Fields, chat_row, message
from modpo.data.prompt_group import Message
from modpo.data.rows import Row

RESPECTS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")  # of HelpSteer
ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")  # of UltraFeedback

_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")

Completion = tuple[str, dict[str, float | None]]  # the answer, its ratings


def beavertails_row(row: Row) -> Row | None:
    """BeaverTails, where people say of each answer whether it is safe: one response, with the column `safe`, 1 or 0.

    Ji et al., "BeaverTails: Towards Improved Safety Alignment of LLM via a Human-Preference Dataset", NeurIPS 2023,
    arXiv 2307.04657. On the Hub: PKU-Alignment/BeaverTails, in the splits 30k_train, 30k_test, 330k_train and
    330k_test; in the large ones several people judge one answer. Its preferences are PKU-SafeRLHF's. The prompts of
    PKU-Alignment/BeaverTails-Evaluation are read by the format `prompts`. The rows of one prompt become one group.

    Returns:
        None if the prompt or the response is blank.
    """
    with Fields(row, "beavertails") as fields:
        prompt, response = fields.text("prompt"), fields.text("response")
        safe = float(fields.choice("is_safe", (0, 1)))
    return chat_row(prompt, [response], row, ("prompt", "response", "category", "is_safe"), safe=[safe])


def helpsteer_row(row: Row) -> Row | None:
    """HelpSteer and HelpSteer2, whose answers people rated in five respects: one response, with a column for each.

    Columns: `helpfulness`, `correctness`, `coherence`, `complexity`, `verbosity`, from 0 to 4. More is better of the
    first three; the last two describe a style. The rows of one prompt become one group.

    Wang et al., "HelpSteer: Multi-attribute Helpfulness Dataset for SteerLM", NAACL 2024, arXiv 2311.09528; Wang et
    al., "HelpSteer2: Open-source dataset for training top-performing reward models", NeurIPS 2024, arXiv 2406.08673.
    On the Hub: nvidia/HelpSteer, nvidia/HelpSteer2.

    Returns:
        None if the prompt or the response is blank.
    """
    with Fields(row, "helpsteer") as fields:
        prompt, response = fields.text("prompt"), fields.text("response")
        columns = {name: [fields.number(name)] for name in RESPECTS}
    return chat_row(read_turns(prompt), [response], row, ("prompt", "response", *RESPECTS), **columns)


def read_turns(prompt: str) -> list[Message]:
    """The turns of a HelpSteer prompt: the first is the user's, and a line before each further one says whose it is."""
    first, *parts = _TURN.split(prompt)
    turns = [message(speaker.lower(), text) for speaker, text in zip(parts[::2], parts[1::2], strict=True)]
    return [message("user", first), *turns]


def ultrafeedback_row(row: Row) -> Row | None:
    """UltraFeedback, instructions with answers of four models, rated by GPT-4: every answer, its ratings as columns.

    Columns: `helpfulness`, `honesty`, `instruction_following` and `truthfulness`, from 1 to 5, and `overall`, from
    1 to 10; more is better. A rating that is missing or "N/A" is None. A blank answer is left out.

    Cui et al., "UltraFeedback: Boosting Language Models with Scaled AI Feedback", ICML 2024, arXiv 2310.01377.
    On the Hub: openbmb/UltraFeedback. The chosen and rejected answers that others derived from it, such as
    HuggingFaceH4/ultrafeedback_binarized with its `score_chosen` and `score_rejected`, are read by the format
    `preference`.

    Returns:
        None if the instruction is blank or there is no answer.
    """
    with Fields(row, "ultrafeedback") as fields:
        prompt = fields.text("instruction")
        completions = [_completion(completion) for completion in fields.each("completions")]
    answered = [(response, ratings) for response, ratings in completions if response.strip()]
    if not answered:
        return None
    columns = {name: [ratings[name] for _, ratings in answered] for name in (*ASPECTS, "overall")}
    used = ("instruction", "completions", "models")
    return chat_row(prompt, [response for response, _ in answered], row, used, **columns)


def _completion(fields: Fields) -> Completion:
    annotations = fields.inside("annotations", optional=True)
    ratings = {aspect: annotations.inside(aspect, optional=True).number("Rating", optional=True) for aspect in ASPECTS}
    return fields.text("response"), {**ratings, "overall": fields.number("overall_score", optional=True)}
