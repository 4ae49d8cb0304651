"""What the library says of fields and stages, in the words of the command line: options, and what to type."""

from __future__ import annotations

import re

from modpo.base.errors import ModpoError

TYPED = {  # words of the library's errors -> what they mean to somebody at the command line
    "`overrides`": "--set",
    "`output`": "`--output`",
    "`trust_remote_code`": "`--trust-remote-code`",
    "give `trust_remote_code` to the call": "give --trust-remote-code on the command line",
    "give `weights` instead": "give `--weights` instead",
    "not as it was sampled": "not as `modpo sample` wrote it",
    "sample the answers first": "run `modpo sample` first",
    "train the rewards first": "run `modpo reward` or `modpo sweep`",
    "train the part first": "train it with `modpo reward` first",
    "score again": "run `modpo score` again",
    "and train it": "and run `modpo sweep`",
    "train the sweep first": "run `modpo sweep` first",
    "train the sweep again": "run `modpo sweep` again",
    "measure it first": "run `modpo evaluate` first",
    "measure it again": "run `modpo evaluate` again",
}
_KNOWN = re.compile("|".join(re.escape(words) for words in sorted(TYPED, key=len, reverse=True)))


def typed(error: ModpoError) -> list[str]:
    """The lines of an error, as somebody reads them who types commands."""
    return _KNOWN.sub(lambda found: TYPED[found[0]], str(error)).split("\n")
