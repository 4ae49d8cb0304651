"""The README is short, names the packages as they are, and says the same in English and in Chinese."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.repository.documents import README, ROOT, blocks, fenced, inline_code, prose
from tests.repository.layers import LAYERS

CHINESE = (ROOT / "README.zh-CN.md").read_text("utf-8")


def headings(text: str) -> list[str]:
    """The levels of the headings, in order: "#", "##"."""
    return re.findall(r"^(#+) ", prose(text), flags=re.M)


def parts(text: str) -> list[str]:
    """The prose under each heading, in order."""
    return re.split(r"^#+ .*$", prose(text), flags=re.M)[1:]


def numbers(text: str) -> Counter[str]:
    """Every number of a text and how often it occurs: "0.22", "5e-4", "1.16"."""
    return Counter(re.findall(r"\d+(?:[.,]\d+)*(?:e-?\d+)?", text))


def links(text: str) -> Counter[str]:
    """The targets of links and pictures, without those from one language to the other."""
    found = Counter(re.findall(r"\]\(([^)\s]+)\)", text))
    return Counter({target: count for target, count in found.items() if not re.match(r"README[.\w-]*$|#", target)})


def package_tree(text: str) -> list[str]:
    """The packages that the tree of a README names, in its order."""
    (tree,) = [code for code in blocks(text, "") if code.startswith("src/modpo/\n")]
    return re.findall(r"^  (\w+)/ +\S.*$", tree, flags=re.M)


def test_readme_is_short_and_begins_with_an_example() -> None:
    lines = README.splitlines()
    assert len(lines) <= 180
    assert lines.index("```python") < 60


@pytest.mark.parametrize("readme", [README, CHINESE], ids=["English", "Chinese"])
def test_readme_lists_the_packages_in_their_order(readme: str) -> None:
    assert package_tree(readme) == list(LAYERS)


def test_readmes_link_to_each_other_at_the_top() -> None:
    assert "](README.zh-CN.md)" in "".join(README.splitlines()[:5])
    assert "](README.md)" in "".join(CHINESE.splitlines()[:5])


def test_chinese_readme_has_the_same_headings() -> None:
    assert headings(CHINESE) == headings(README)


def test_chinese_readme_has_the_same_code() -> None:
    """All but the tree of packages, whose descriptions are translated."""
    english, chinese = ([block for block in fenced(text) if block[0]] for text in (README, CHINESE))
    assert {language for language, _ in english} == {"sh", "python", "math", "yaml"}
    assert chinese == english


def test_chinese_readme_has_the_same_facts_under_each_heading() -> None:
    """Numbers, what stands in backticks, and links."""
    for english, chinese in zip(parts(README), parts(CHINESE), strict=True):
        assert numbers(chinese) == numbers(english)
        assert Counter(inline_code(chinese)) == Counter(inline_code(english))
        assert links(chinese) == links(english)
