"""What is checked before a training: places that can be written, and settings; nothing is written by it.

Bad data, models and rewards are those of tests/end_to_end/bad_inputs.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modpo.base.errors import EnvironmentFault, InputError
from modpo.base.progress import say_once
from modpo.experiment.file import read_experiment
from modpo.experiment.sections import Experiment, LoraSection
from modpo.pipeline import preflight
from modpo.pipeline.preflight import check_experiment, check_training, require_writable
from modpo.scored.of_experiment import score_experiment
from tests.kit import edit_json, preference_rows, write_experiment, write_rows
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


@pytest.mark.parametrize(
    ("dtype", "lora", "warned"), [("bfloat16", False, 1), ("bfloat16", True, 0), ("float32", False, 0)]
)
def test_training_all_weights_in_16_bits_is_warned_of(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], dtype: str, lora: bool, warned: int
) -> None:
    model = replace(experiment.model, dtype=dtype)
    check_training(replace(without_sft(experiment), model=model, lora=LoraSection() if lora else None), WEIGHTS)
    assert capsys.readouterr().err.count("all weights are trained in bfloat16") == warned


@pytest.mark.parametrize(("trained", "warned"), [(["embed_tokens"], 1), (None, 0)])
def test_an_embedding_that_is_the_head_too_is_warned_of(
    experiment: Experiment, tiny_model: Path, tmp_path: Path, capsys: Any, trained: list[str] | None, warned: int
) -> None:
    say_once.cache_clear()
    tied = shutil.copytree(tiny_model, tmp_path / "tied")
    edit_json(tied / "config.json", tie_word_embeddings=True)
    model = replace(experiment.model, model_name_or_path=str(tied))
    changed = replace(without_sft(experiment), model=model, lora=LoraSection(modules_to_save=trained))
    for _ in range(2):
        check_training(changed, WEIGHTS)
    assert capsys.readouterr().err.count("embeddings and output head are one tensor") == warned


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


def test_many_prompts_whose_tokens_are_kept_are_not_tokenized_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a model that has the same tokenizer and fewer positions is refused by what is kept."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", preference_rows(8))
    given = read_experiment(write_experiment(tmp_path, model))
    monkeypatch.setattr(preflight, "MOST_GROUPS", 2)
    score_experiment(given)

    def tokenizes(*_: Any, **__: Any) -> Any:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(preflight, "tokenize_groups", tokenizes)
    check_experiment(given)
    edit_json(model / "config.json", max_position_embeddings=8)
    with pytest.raises(InputError, match=r"rows.jsonl:\d+: takes \d+ tokens, and the model has 8 positions"):
        check_experiment(given)
