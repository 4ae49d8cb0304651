"""Data sets in which people compare two answers: PKU-SafeRLHF, SHP, Summarize from feedback.

Each format raises an InputError that names every field of its layout that is missing or of another kind.
"""

from __future__ import annotations

import re

from modpo.data.formats.fields import Fields, chat_row, unused
from modpo.data.rows import Row

AXES = ("overall", "accuracy", "coverage", "coherence")  # of ratings in Summarize from feedback
OF_SUMMARIES = ("info", "summaries", "summary", "choice", "worker", "batch", "split", "extra")

_OF_PKU_ANSWERS = re.compile(r"prompt$|(is_)?response_[01]|(better|safer)_response_id")
_OF_SHP_PAIR = re.compile(r".*_[AB]$|history$|labels$|seconds_difference$|score_ratio$")


def pku_saferlhf_row(row: Row) -> Row | None:
    """PKU-SafeRLHF: people say which answer is better and, apart from that, which is safer.

    Two label sets on the same two responses: `better` (more helpful, whether or not it is safe), `safer`.
    Columns: `safe`, 1 or 0; `severity` of the harm, from 0 (none) to 3 (severe), in versions that have it.

    Ji et al., "PKU-SafeRLHF: Towards Multi-Level Safety Alignment for LLMs with Human Preference", 2024, arXiv
    2406.15513; its first version: Dai et al., "Safe RLHF: Safe Reinforcement Learning from Human Feedback", ICLR 2024,
    arXiv 2310.12773. On the Hub: PKU-Alignment/PKU-SafeRLHF.

    Returns:
        None if the prompt or a response is blank.
    """
    with Fields(row, "pku_saferlhf") as fields:
        prompt = fields.text("prompt")
        responses = [fields.text(f"response_{i}") for i in (0, 1)]
        better, safer = (fields.choice(f"{label}_response_id", (0, 1)) for label in ("better", "safer"))
        safe = [float(fields.choice(f"is_response_{i}_safe", (0, 1))) for i in (0, 1)]
        severity = [fields.number(f"response_{i}_severity_level", optional=True) for i in (0, 1)]
    levels = {"severity": severity} if any(level is not None for level in severity) else {}
    pairs = {"better": [[better, 1 - better]], "safer": [[safer, 1 - safer]]}
    return chat_row(prompt, responses, row, list(filter(_OF_PKU_ANSWERS.match, row)), pairs=pairs, safe=safe, **levels)


def shp_row(row: Row) -> Row | None:
    """SHP, Stanford Human Preferences: two comments below a Reddit post, and a pair, the one that readers liked better.

    Columns: `score`, a comment's upvotes less its downvotes. The comment with the higher score was written later, so
    that it does not owe its score to having been there for longer. Rows of one post become one group.

    Ethayarajh et al., "Understanding Dataset Difficulty with V-Usable Information", ICML 2022, arXiv 2110.08420.
    On the Hub: stanfordnlp/SHP.

    Returns:
        None if the post or a comment is blank.
    """
    with Fields(row, "shp") as fields:
        prompt = fields.text("history")
        responses = [fields.text(f"human_ref_{side}") for side in "AB"]
        prefers_a = fields.choice("labels", (0, 1))
        score = [fields.number(f"score_{side}") for side in "AB"]
    pairs = [[1 - prefers_a, prefers_a]]
    return chat_row(prompt, responses, row, list(filter(_OF_SHP_PAIR.match, row)), pairs=pairs, score=score)


def summarize_from_feedback_row(row: Row) -> Row | None:
    """Summaries of Reddit posts and of news: two and a pair where people compared them, one with its ratings otherwise.

    Prompts are the paper's, plain text that ends in "TL;DR:". The rows of one text become one group.
    Columns of ratings: `overall`, `accuracy`, `coverage`, `coherence`, from 1 to 7, more is better, None where not
    rated.

    Stiennon et al., "Learning to summarize from human feedback", NeurIPS 2020, arXiv 2009.01325;
    github.com/openai/summarize-from-feedback. On the Hub: openai/summarize_from_feedback, whose configuration
    `comparisons` (splits train, validation) holds the comparisons and `axis` (splits test, validation) the ratings.

    Returns:
        None if a summary is blank.
    """
    with Fields(row, "summarize_from_feedback") as fields:
        prompt = _prompt(fields.inside("info"))
        labels, texts = _rating(fields.inside("summary")) if "summary" in row else _comparison(fields)
    if not all(text.strip() for text in texts):
        return None
    space = "" if prompt.endswith("\n") else " "  # it belongs to the first word's token
    responses = [space + text.strip() for text in texts]
    return {"prompt": prompt, "responses": responses, **labels, **unused(row, OF_SUMMARIES)}


def _comparison(fields: Fields) -> tuple[Row, list[str]]:
    texts = [summary.text("text") for summary in fields.each("summaries")]
    choice = fields.choice("choice", (0, 1))
    if len(texts) != 2:
        fields.report("summaries", f"holds {len(texts)} summaries, not two")
    return {"pairs": [[choice, 1 - choice]]}, texts


def _rating(summary: Fields) -> tuple[Row, list[str]]:
    axes = summary.inside("axes")
    return {name: [axes.number(name, optional=True)] for name in AXES}, [summary.text("text")]


def _prompt(info: Fields) -> str:
    post, article = info.text("post", optional=True), info.text("article", optional=True)
    if article.strip():
        return f"Article:\n{article.strip()}\n\nTL;DR:\n"
    if not post.strip():
        info.report("post", "neither a post nor an article")
    subreddit, title = info.text("subreddit", optional=True), info.text("title", optional=True)
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title.strip()}\n\nPOST: {post.strip()}\n\nTL;DR:"
