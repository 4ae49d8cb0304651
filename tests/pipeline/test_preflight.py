"""What is checked before a training: places that can be written, and settings; nothing is written by it.

Bad data, models and rewards are those of tests/end_to_end/bad_inputs.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modpo.base.errors import EnvironmentFault, InputError
from modpo.base.progress import say_once
from modpo.experiment.sections import Experiment, LoraSection
from modpo.pipeline.preflight import check_training, require_writable
from tests.pipeline.staged import without_sft

WEIGHTS = {"kind": 0.5, "brief": 0.25, "friendly": 0.25}


def test_what_is_right_passes_and_leaves_no_trace(experiment: Experiment, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    check_training(without_sft(experiment), WEIGHTS)
    check_training(without_sft(experiment), WEIGHTS, tmp_path / "elsewhere")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} <= before
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda e: replace(e, lora=LoraSection(target_modules=["nope"])), InputError, "lora: do not fit the model"),
        (lambda e: replace(e, model=replace(e.model, dtype="float16")), EnvironmentFault, "does not train on a CPU"),
        (lambda e: replace(e, training=replace(e.training, lr_scheduler_type="steep")), InputError, "steep"),
    ],
    ids=["adapters", "dtype", "schedule"],
)
def test_what_the_trainer_would_refuse_is_refused(
    experiment: Experiment, change: Callable[[Experiment], Experiment], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        check_training(change(without_sft(experiment)), WEIGHTS)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    require_writable(tmp_path / "new" / "folder", "output_dir")
    assert not (tmp_path / "new").exists()
    for place in ("file", "file/below"):
        with pytest.raises(EnvironmentFault, match="file: is no folder; fix: choose another `cache_dir`"):
            require_writable(tmp_path / place, "cache_dir")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(EnvironmentFault, match="link: is no folder"):
        require_writable(tmp_path / "link", "output_dir")


def test_all_weights_in_16_bits_are_warned_of(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    say_once.cache_clear()
    whole = replace(without_sft(experiment), lora=None)
    check_training(whole, WEIGHTS)
    assert "all weights" not in capsys.readouterr().err
    for _ in range(2):
        check_training(replace(whole, model=replace(whole.model, dtype="bfloat16")), WEIGHTS)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "all weights" in line]
    assert line.startswith("warning: ")
    assert "model.dtype: all weights are trained in bfloat16" in line
    assert line.endswith("fix: leave it out, for float32")
