"""Variables of the chat template and the date that it writes, from the file to the answers: the same everywhere."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from modpo.base.errors import InputError
from modpo.data.clock import DATE_FILE
from modpo.data.loading import load_groups
from modpo.evaluation.answers import Questions
from modpo.evaluation.evaluate import evaluate_sweep
from modpo.experiment.file import read_experiment
from modpo.forward.generate import generate
from modpo.forward.sampled import SamplingSettings
from modpo.methods.sweep import run_sweep
from modpo.models.reference import ReferenceModel, answer_ends
from modpo.pipeline.preflight import check_experiment
from modpo.policies.steered_front import load_front
from modpo.policies.steering import SteeredPolicy, Steering
from modpo.scored.of_experiment import score_experiment
from tests.kit import build_model, edit_json, write_experiment, write_rows

TEMPLATE = (
    "{{ strftime_now('%d %b %Y') }}\n{% for m in messages %}<turn>{{ m.role }}\n"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% if brief %}!{% endif %}{% endif %}"
)
START = dt.datetime(2026, 11, 28)


@pytest.fixture
def days_later(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Moves the library's clock and that of transformers' templates."""
    from transformers.utils import chat_template_utils as theirs

    import modpo.data.clock as ours

    def move(days: int) -> None:
        now = START + dt.timedelta(days=days)

        class Time(dt.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return now

        class Date(dt.date):
            @classmethod
            def today(cls) -> Any:
                return now.date()

        monkeypatch.setattr(theirs, "datetime", Time)
        monkeypatch.setattr(ours, "date", Date)

    move(0)
    return move


@pytest.fixture
def file(tmp_path: Path, days_later: Callable[[int], None]) -> Path:
    """An experiment on conversations, with a template of many habits."""
    model = build_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    rows = []
    for i in range(12):
        answer = {"role": "assistant", "content": f"good {i}", "reasoning_content": "so"}
        row = {"prompt": [{"role": "user", "content": f"{i}?"}], "chosen": [answer]}
        row["rejected"] = [{"role": "assistant", "content": f"bad {i} and more", "reasoning_content": None}]
        row["chat_template_kwargs"] = {"brief": False} if i == 0 else None
        rows.append(row)
    write_rows(tmp_path / "rows.jsonl", rows)
    data = "{path: FOLDER/rows.jsonl, eval_prompts: 3, max_length: 96, chat_template_kwargs: {brief: true}}"
    return write_experiment(tmp_path, model, data=data)


def decoded_prompts(file: Path) -> list[str]:
    experiment = read_experiment(file)
    tokens = score_experiment(experiment).tokens.open()
    tokenizer = ReferenceModel.of(experiment).tokenizer
    return [tokenizer.decode(ids) for ids in tokens["prompt_ids"]]


def test_variables_reach_training_measuring_and_chat(file: Path) -> None:
    experiment = read_experiment(file)
    train, held_out = load_groups(experiment)
    reference = ReferenceModel.of(experiment)
    questions = Questions(reference, held_out, experiment.evaluation, 90, True)
    asked = [reference.tokenizer.decode(ids) for ids in questions.prompts_ids]
    for groups, texts in ((train, decoded_prompts(file)), (held_out, asked)):
        for group, text in zip(groups, texts, strict=True):
            opened = "" if group.prompt[0]["content"] == "0?" else "!"  # type: ignore[index]
            # What stands behind the header before an answer alone, is no part of the trained prompt.
            expected = f"28 Nov 2026\n<turn>user\n{group.prompt[0]['content']}<eos>\n<turn>assistant\n"  # type: ignore[index]
            assert text == expected + opened * (texts is asked)
    response = score_experiment(experiment).tokens.open()["responses_ids"][0][0]
    assert reference.tokenizer.decode(response).startswith("(so)good")


def test_a_sweep_lives_in_one_day(file: Path, days_later: Callable[[int], None]) -> None:
    """Scored on one day, trained 40 days later, with another vector 80 days later, then talked to."""
    first = decoded_prompts(file)
    assert all(text.startswith("28 Nov 2026") for text in first)
    assert json.loads((file.parent / "run" / DATE_FILE).read_text()) == {"date": "2026-11-28"}
    days_later(40)
    assert run_sweep(read_experiment(file)) == []
    evaluate_sweep(read_experiment(file))
    days_later(80)
    more = read_experiment(file, ["sweep.grid=3"])
    assert run_sweep(more) == []
    front = evaluate_sweep(more)
    assert decoded_prompts(file) == first
    assert len(front.points) == 3
    policy = SteeredPolicy(Steering(load_front(file.parent / "run")))
    text = policy.tokenizer.decode(policy.conversation(200).ids("Hi"))
    assert text == "28 Nov 2026\n<turn>user\nHi<eos>\n<turn>assistant\n!"


def test_a_baked_policy_sees_the_time_and_knows_its_variables(file: Path, days_later: Callable[[int], None]) -> None:
    run_sweep(read_experiment(file))
    evaluate_sweep(read_experiment(file))
    days_later(5)
    front, baked = load_front(file.parent / "run"), file.parent / "baked"
    front.bake({"kind": 0.75, "concise": 0.25}, baked, merge=True)
    assert AutoTokenizer.from_pretrained(baked).chat_template == TEMPLATE
    manifest = json.loads((baked / "manifest.json").read_text())
    assert manifest["chat_template_kwargs"] == {"brief": True}


def test_looking_writes_no_date(file: Path) -> None:
    check_experiment(read_experiment(file))
    assert not (file.parent / "run").exists()


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ("{brieff: true}", "chat_template_kwargs.brieff: the chat template of the model reads no such variable"),
        ("{tools: []}", "data.chat_template_kwargs: holds 'tools'"),
        ("{strftime_now: x}", "data.chat_template_kwargs: holds 'strftime_now'"),
    ],
)
def test_variables_without_effect_are_refused(file: Path, kwargs: str, expected: str) -> None:
    text = file.read_text().replace("{brief: true}", kwargs)
    file.write_text(text)
    with pytest.raises(InputError, match=expected):
        check_experiment(read_experiment(file))


def test_answers_end_where_the_model_s_own_settings_say(file: Path) -> None:
    model = file.parent / "model"
    edit_json(model / "generation_config.json", eos_token_id=[0, 77])
    experiment = read_experiment(file)
    reference = ReferenceModel.of(experiment)
    _, held_out = load_groups(experiment)
    questions = Questions(reference, held_out, experiment.evaluation, 90, True)
    assert questions.ends == answer_ends(reference, held_out) == [0, 77]
    before = questions.parts()
    settings = SamplingSettings(questions.ends, max_new_tokens=200, answers_per_prompt=20)
    for packing in (True, False):
        given = generate(reference.model, reference.tokenizer, questions.prompts_ids, settings, packing=packing)
        answers = [answer.ids for group in given for answer in group]
        assert any(ids[-1] == 77 for ids in answers)
        assert not any(77 in ids[:-1] for ids in answers)
    edit_json(model / "generation_config.json", eos_token_id=0)
    assert Questions(ReferenceModel.of(experiment), held_out, experiment.evaluation, 90, True).parts() != before
