"""Answers of the reference policy as data: sampled once, kept, and never written over somebody's file."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from modpo.base.errors import EnvironmentFault, InputError
from modpo.cli import main
from modpo.data.chat_template import stop_ids
from modpo.data.groups import PromptGroups, group_rows, overlap
from modpo.data.loading import load_groups
from modpo.data.sources import open_rows
from modpo.data.tokens import tokenize_prompt
from modpo.experiment.sections import Experiment
from modpo.forward.generate import generate
from modpo.forward.sampled import SamplingSettings
from modpo.models.reference import ReferenceModel
from modpo.pipeline.sample import held_out_prompts, sample_experiment, sample_prompts
from modpo.pipeline.stages import prepare
from modpo.quickstart import FULL, quickstart_experiment
from modpo.quickstart.size import FAST, Size
from modpo.scored.answers import SampleSettings, sample_column, sample_responses, write_prompts
from modpo.scored.columns import Column
from tests.kit import read_rows, write_experiment, write_rows


@pytest.fixture
def experiment_file(tmp_path: Path, tiny_model: Path) -> Path:
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"{i}: what now? "} for i in range(12)])
    return write_experiment(
        tmp_path,
        tiny_model,
        sample="""
  prompts: FOLDER/prompts.jsonl
  held_out: 3
  max_prompts: 6
  responses_per_prompt: 3
  max_new_tokens: 16""",
        data="""
  path: FOLDER/data/train.jsonl
  eval_path: FOLDER/data/held_out.jsonl
  eval_format: prompts
  eval_prompts: 3
  max_length: 64""",
        objectives="""
  long: {pairs: bradley_terry, reward: modpo.rewards.text:character_count, scale: 0.5}
  few: {reward: modpo.rewards.text:word_count, maximize: false}""",
        training="{per_device_train_batch_size: 4, max_steps: 1}",
        sweep="{grid: 1}",
        evaluation="{max_new_tokens: 6, bootstrap: 50}",
    )


@pytest.fixture
def reference(experiment: Experiment) -> ReferenceModel:
    return ReferenceModel(experiment.model, experiment.cache_dir)


def test_answers_and_held_out_prompts_are_written(experiment: Experiment, reference: ReferenceModel) -> None:
    """Against the plain way: the split, and one call of `generate` for all answers."""
    sample_experiment(experiment)
    prompts = group_rows(open_rows(experiment.sample.prompts), format="prompts")
    answered, held_out = prompts.split_held_out(3, 0)
    assert [row["prompt"] for row in read_rows(experiment.data.eval_path)] == [group.prompt for group in held_out]
    tokenizer = reference.tokenizer
    given = generate(
        reference.model,
        tokenizer,
        [tokenize_prompt(group.prompt, tokenizer) for group in answered[:6]],
        SamplingSettings(stop_ids(tokenizer, conversational=False), max_new_tokens=16, answers_per_prompt=3),
        packing=True,
    )
    texts = [[tokenizer.decode(one.ids, skip_special_tokens=True).strip() for one in answers] for answers in given]
    expected = [
        {"prompt": group.prompt, "responses": [text for text in texts[i] if text]}
        for i, group in enumerate(answered[:6])
    ]
    assert read_rows(experiment.data.path) == [row for row in expected if row["responses"]]
    assert len(read_rows(experiment.data.path)) > 0


def test_the_same_again_samples_and_writes_nothing(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sample_experiment(experiment)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    for shard in (tmp_path / "cache").rglob("*.arrow"):
        shard.unlink()  # what is written needs no cache
    capsys.readouterr()
    sample_experiment(experiment)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == before
    said = capsys.readouterr().err
    for path in (experiment.data.path, experiment.data.eval_path):
        assert f"{path}: written before, kept" in said
    assert "samples:" not in said
    assert "samples for" not in said


def test_other_settings_write_other_answers(experiment: Experiment) -> None:
    sample_experiment(experiment)
    before = read_rows(experiment.data.path)
    sample_experiment(replace(experiment, sample=replace(experiment.sample, max_prompts=2)))
    assert [row["prompt"] for row in read_rows(experiment.data.path)] == [row["prompt"] for row in before[:2]]
    sample_experiment(experiment)
    assert read_rows(experiment.data.path) == before


@pytest.mark.parametrize("field_name", ["path", "eval_path"])
def test_a_file_of_somebody_else_is_not_written_over(experiment: Experiment, field_name: str) -> None:
    path = Path(getattr(experiment.data, field_name))
    path.parent.mkdir()
    path.write_text('{"prompt": "mine"}\n')
    with pytest.raises(InputError, match="is there already, and is not as it was sampled; fix: move it away"):
        sample_experiment(experiment)
    assert path.read_text() == '{"prompt": "mine"}\n'
    assert list(path.parent.iterdir()) == [path]  # nothing beside it either
    assert not experiment.cache_dir.exists()  # found before anything was sampled


def test_a_file_that_was_edited_is_not_written_over(experiment: Experiment) -> None:
    sample_experiment(experiment)
    path = Path(experiment.data.path)
    path.write_text(path.read_text() + '{"prompt": "mine", "responses": ["a"]}\n')
    edited = path.read_text()
    for sample in (experiment.sample, replace(experiment.sample, max_prompts=2)):
        with pytest.raises(InputError, match="is not as it was sampled"):
            sample_experiment(replace(experiment, sample=sample))
    assert path.read_text() == edited


def test_killed_between_manifest_and_rows_it_goes_on(
    experiment: Experiment, reference: ReferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are renamed last: until then the file that they replace must stay modpo's own."""
    prompts, _ = sample_prompts(experiment)
    path = Path(experiment.data.path)
    write_prompts(prompts[:2], path)

    def killed(self: Path, target: Path) -> Path:
        if target == path:
            raise KeyboardInterrupt
        return original(self, target)

    original = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_prompts(prompts[:4], path)
    assert len(read_rows(path)) == 2
    write_prompts(prompts[:4], path)
    assert len(read_rows(path)) == 4


def test_a_killed_run_samples_the_rest(
    experiment: Experiment, reference: ReferenceModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("modpo.scored.answers.SHARD_PROMPTS", {"transformers": 2})
    prompts, _ = sample_prompts(experiment)
    settings = SampleSettings(responses_per_prompt=2, max_new_tokens=4)
    whole = sample_column(reference, prompts, settings, cache_dir=tmp_path / "whole").open()["responses"]

    fill = Column.fill

    def killed(self: Column, compute: Any) -> None:
        def twice(shard: range) -> Iterator[Any]:
            if shard.start == 4:
                raise KeyboardInterrupt
            yield from compute(shard)

        fill(self, twice)

    with monkeypatch.context() as patch:
        patch.setattr(Column, "fill", killed)
        with pytest.raises(KeyboardInterrupt):
            sample_column(reference, prompts, settings, cache_dir=tmp_path / "killed")
    computed: list[int] = []

    def watched(self: Column, compute: Any) -> None:
        def noted(shard: range) -> Iterator[Any]:
            computed.append(shard.start)
            yield from compute(shard)

        fill(self, noted)

    monkeypatch.setattr(Column, "fill", watched)
    samples = sample_column(reference, prompts, settings, cache_dir=tmp_path / "killed")
    assert computed == [4]
    assert list(samples.open()["responses"]) == list(whole)


def test_conversations_are_answered_in_their_layout(
    experiment: Experiment, reference: ReferenceModel, tmp_path: Path
) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": "Hi?"}]}) + "\n")
    prompts = group_rows(open_rows(path), format="prompts")
    sample_responses(
        reference, prompts, tmp_path / "out.jsonl", SampleSettings(max_new_tokens=8), cache_dir=tmp_path / "cache"
    )
    (row,) = read_rows(tmp_path / "out.jsonl")
    assert row["prompt"] == [{"role": "user", "content": "Hi?"}]
    assert all(len(response) == 1 and response[0]["role"] == "assistant" for response in row["responses"])
    assert len(group_rows(open_rows(tmp_path / "out.jsonl"))) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval_path": None}, "data.eval_path: is not set, and the held-out prompts of `sample` go there"),
        ({"eval_format": None}, "data.eval_format: the held-out prompts of `sample` have no answers; fix: set"),
        ({"path": "rows.parquet"}, "data.path: 'rows.parquet' is no .jsonl file, which `sample` writes"),
    ],
)
def test_bad_places_are_said(experiment: Experiment, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        sample_experiment(replace(experiment, data=replace(experiment.data, **changes)))
    assert said in str(caught.value)


def test_prompts_to_be_measured_on_are_known_before_they_are_written(experiment: Experiment) -> None:
    before = held_out_prompts(experiment)
    sample_experiment(experiment)
    assert before.keys.tolist() == load_groups(experiment)[1].keys.tolist()


def test_and_so_are_those_that_will_be_split_off_the_answers(experiment: Experiment) -> None:
    data = replace(experiment.data, eval_path=None, eval_format=None, eval_prompts=2)
    experiment = replace(experiment, data=data, sample=replace(experiment.sample, held_out=0, max_new_tokens=24))
    before = held_out_prompts(experiment)
    sample_experiment(experiment)
    assert len(read_rows(data.path)) == 6  # no prompt was left out for empty answers
    assert before.keys.tolist() == load_groups(experiment)[1].keys.tolist()


@pytest.mark.parametrize("size", [FULL, FAST])
def test_what_the_quickstart_samples(tmp_path: Path, size: Size) -> None:
    experiment = quickstart_experiment(tmp_path, size)
    answered, held_out = sample_prompts(experiment)
    assert (len(answered), len(held_out)) == (size.train_prompts, size.held_out_prompts)
    assert overlap(answered, held_out) == 0
    assert experiment.sample.max_new_tokens == experiment.evaluation.max_new_tokens == size.max_new_tokens
    assert experiment.sample.responses_per_prompt == 4
    assert experiment.sample.temperature == 1.0


def test_vllm_that_is_not_there(experiment: Experiment) -> None:
    with pytest.raises(
        EnvironmentFault, match=r"sample.engine: vLLM is not installed, or has no GPU; fix: pip install"
    ):
        sample_experiment(replace(experiment, sample=replace(experiment.sample, engine="vllm")))


def test_the_command_and_the_pipeline(
    experiment_file: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(experiment_file)]) == 0
    assert "stage 1 of 1: sample" in capsys.readouterr().err
    assert main(["sweep", str(experiment_file), "--no-evaluate"]) == 0
    said = capsys.readouterr().err
    assert "stage 1 of 2: sample" in said
    assert f"{experiment.data.path}: written before, kept" in said
    assert "stage 2 of 2: sweep" in said
    assert (experiment.output_dir / "points" / "long0.5-few0.5" / "adapter_config.json").is_file()
    resolved = prepare(experiment)
    assert resolved.asked is experiment
    assert all(getattr(resolved, f.name) == getattr(experiment, f.name) for f in fields(experiment))


# --- vLLM, which needs a GPU: a stand-in that takes what vLLM takes -----------------------------------------


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    stop_token_ids: list[int]
    ignore_eos: bool
    seed: int
    detokenize: bool


@dataclass
class StandIn:
    """Answers with the letters of its seed, and writes down what it was asked."""

    asked: list[tuple[list[int], SamplingParams]] = field(default_factory=list)

    def generate(
        self, prompts: list[dict[str, list[int]]], settings: list[SamplingParams], use_tqdm: bool
    ) -> list[types.SimpleNamespace]:
        self.asked += [(prompt["prompt_token_ids"], given) for prompt, given in zip(prompts, settings, strict=True)]
        answers = [[3 + ord(letter) - ord("!") for letter in f"s{given.seed}"] for given in settings]
        return [types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=ids)]) for ids in answers]


def test_vllm_is_asked_for_what_the_policy_says(
    experiment: Experiment, reference: ReferenceModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models: list[dict[str, Any]] = []
    stand_in = StandIn()
    module = types.ModuleType("vllm")
    module.LLM = lambda **arguments: models.append(arguments) or stand_in  # type: ignore[attr-defined]
    module.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr("modpo.scored.answers.SHARD_PROMPTS", {"vllm": 2, "transformers": 2})
    prompts: PromptGroups = sample_prompts(experiment)[0][:3]
    settings = SampleSettings(responses_per_prompt=2, max_new_tokens=5, temperature=0.7, seed=10)
    samples = sample_column(reference, prompts, replace(settings, engine="vllm"), cache_dir=tmp_path / "cache")
    assert models == [
        {"model": str(reference.folder), "dtype": "float32", "trust_remote_code": False, "generation_config": "vllm"}
    ]
    assert [given.seed for _, given in stand_in.asked] == [20, 21, 22, 23, 24, 25]  # each its own, over all shards
    ids = [tokenize_prompt(group.prompt, reference.tokenizer) for group in prompts for _ in range(2)]
    assert [asked for asked, _ in stand_in.asked] == ids
    first = stand_in.asked[0][1]
    assert first == SamplingParams(0.7, 5, [reference.tokenizer.eos_token_id], True, 20, False)
    assert samples.key != sample_column(reference, prompts, settings, cache_dir=tmp_path / "cache").key
    assert [len(row["responses"]) for row in samples.open()] == [2, 2, 2]
