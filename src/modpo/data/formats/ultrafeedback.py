"""UltraFeedback: instructions, each with answers of four models, rated by GPT-4.

Cui et al., "UltraFeedback: Boosting Language Models with Scaled AI Feedback", ICML 2024, arXiv 2310.01377.
On the Hub: openbmb/UltraFeedback. The chosen and rejected answers that others made of it, such as
HuggingFaceH4/ultrafeedback_binarized with its `score_chosen` and `score_rejected`, are read by the format `preference`.
"""

from __future__ import annotations

from modpo.data.formats.fields import Fields, chat_row
from modpo.data.rows import Row

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
USED = ("instruction", "completions", "models")

Completion = tuple[str, dict[str, float | None]]  # the answer, its ratings


def ultrafeedback_row(row: Row) -> Row | None:
    """Every answer, with its ratings as columns; more is better.

    Columns: `helpfulness`, `honesty`, `instruction_following` and `truthfulness`, from 1 to 5, and `overall`, from
    1 to 10. A rating that is missing or "N/A" is None. A blank answer is left out.

    Returns:
        None if the instruction is blank or there is no answer.

    Raises:
        InputError: a field of the layout is missing or of another kind.
    """
    with Fields(row, "ultrafeedback") as fields:
        prompt = fields.text("instruction")
        completions = [_completion(completion) for completion in fields.each("completions")]
    answered = [(response, ratings) for response, ratings in completions if response.strip()]
    if not answered:
        return None
    columns = {name: [ratings[name] for _, ratings in answered] for name in (*ASPECTS, "overall")}
    return chat_row(prompt, [response for response, _ in answered], row, USED, **columns)


def _completion(fields: Fields) -> Completion:
    annotations = fields.inside("annotations", optional=True)
    ratings = {aspect: annotations.inside(aspect, optional=True).number("Rating", optional=True) for aspect in ASPECTS}
    return fields.text("response"), {**ratings, "overall": fields.number("overall_score", optional=True)}
