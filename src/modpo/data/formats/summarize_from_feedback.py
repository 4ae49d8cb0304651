"""Summarize from feedback: summaries of Reddit posts and of news, compared by people, or rated by them.

Stiennon et al., "Learning to summarize from human feedback", NeurIPS 2020, arXiv 2009.01325;
github.com/openai/summarize-from-feedback. On the Hub: openai/summarize_from_feedback, whose configuration
`comparisons` (splits train, validation) holds the comparisons and `axis` (splits test, validation) the ratings.
"""

from __future__ import annotations

from modpo.data.formats.fields import Fields, unused
from modpo.data.rows import Row

AXES = ("overall", "accuracy", "coverage", "coherence")
USED = ("info", "summaries", "summary", "choice", "worker", "batch", "split", "extra")


def summarize_from_feedback_row(row: Row) -> Row | None:
    """A comparison: two summaries and a pair. A rating: one summary with its ratings; more is better.

    Prompts are the paper's, plain text that ends in "TL;DR:". The rows of one text become one group.
    Columns of ratings: `overall`, `accuracy`, `coverage`, `coherence`, from 1 to 7, None where not rated.

    Returns:
        None if a summary is blank.

    Raises:
        InputError: a field of the layout is missing or of another kind.
    """
    with Fields(row, "summarize_from_feedback") as fields:
        prompt = _prompt(fields.inside("info"))
        labels, texts = _rating(fields.inside("summary")) if "summary" in row else _comparison(fields)
    if not all(text.strip() for text in texts):
        return None
    space = "" if prompt.endswith("\n") else " "  # it belongs to the first word's token
    return {"prompt": prompt, "responses": [space + text.strip() for text in texts], **labels, **unused(row, USED)}


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
