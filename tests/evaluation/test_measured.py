"""What is measured of a policy, and how it is read back."""

from __future__ import annotations

from pathlib import Path

from modpo.base.artifact import Artifact
from modpo.evaluation.measured import Measured, read_or_measure


def test_answers_with_any_character_are_read_back(tmp_path: Path) -> None:
    strange = "one\u2028two\x85three\x1cfour"
    answer = {"policy": "reference", "prompt_index": 0, "prompt": "?", "response": strange, "tokens": 3, "kl": 0.0}
    answer["rewards"] = {"tokens": 7.0}  # an objective may be called like another number of the answer
    measured = read_or_measure(Artifact(tmp_path / "kept", {"of": "a test"}), lambda: Measured([answer], {}, []))
    assert measured.answers == [answer]
    assert measured.scores("tokens").tolist() == [7.0]
    assert measured.numbers("tokens").tolist() == [3.0]
