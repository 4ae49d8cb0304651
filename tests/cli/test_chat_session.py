"""`modpo chat` on a tiny real front: what is typed, what is answered, and at which weights."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer

from modpo.base.errors import InputError
from modpo.base.interrupts import Interrupted
from modpo.cli import chat_session as chatting
from modpo.cli import main
from modpo.cli.chat_session import Chat, Sampling, columns, move, read_settings
from modpo.data.tokens import tokenize_prompt
from modpo.policies.steered_front import load_front
from modpo.policies.steering import SteeredPolicy, Steering
from tests.kit import at

GREEDY = Sampling(temperature=0, max_new_tokens=8)


# --- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "given", "after"),
    [
        ({"a": 0.5, "b": 0.5}, {"a": 0.8}, {"a": 0.8, "b": 0.2}),
        ({"a": 1.0, "b": 0.0}, {"a": 0.3}, {"a": 0.3, "b": 0.7}),
        ({"a": 0.5, "b": 0.5}, {"b": 1}, {"a": 0.0, "b": 1.0}),
        ({"a": 0.5, "b": 0.5}, {"a": 0}, {"a": 0.0, "b": 1.0}),
        ({"a": 0.2, "b": 0.6, "c": 0.2}, {"a": 0.6}, {"a": 0.6, "b": 0.3, "c": 0.1}),  # 3 to 1 as before
        ({"a": 1.0, "b": 0.0, "c": 0.0}, {"a": 0.4}, {"a": 0.4, "b": 0.3, "c": 0.3}),  # none before: alike
        ({"a": 0.2, "b": 0.6, "c": 0.2}, {"a": 0.1, "c": 0.1}, {"a": 0.1, "b": 0.8, "c": 0.1}),
        ({"a": 0.2, "b": 0.6, "c": 0.2}, {"c": 0.5, "a": 0.3, "b": 0.2}, {"a": 0.3, "b": 0.2, "c": 0.5}),
    ],
)
def test_moved_weights(before: dict, given: dict, after: dict):
    found = move(before, given, "/w")
    assert found == pytest.approx(after)
    assert list(found) == list(before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"d": 0.5}, "/w:weights.d: unknown objective; fix: use one of: a, b"),
        ({"a": 1.5}, "/w:weights: weights sum to 1.5; fix: they sum to 1 with the others"),
        ({"a": 0.8, "b": 0.8}, "weights sum to 1.6"),
        ({"a": 0.2, "b": 0.2}, "weights sum to 0.4, not 1"),
        ({"a": -0.1}, "-0.1 is negative"),
        ({"a": float("nan")}, "nan is not finite"),
        ({"a": "much"}, "'much' is not a number"),
        ({"a": 0, "b": 0}, "all weights are 0"),
    ],
)
def test_weights_that_are_none(given: dict, message: str):
    with pytest.raises(InputError) as caught:
        move({"a": 0.5, "b": 0.5}, given, "/w")
    assert message in str(caught.value)


def test_settings_are_read():
    assert read_settings("a=0.8", "/w") == {"a": 0.8}
    assert read_settings(" a=0.8,b=.1  c-1.x=1e-1 ", "/w") == {"a": 0.8, "b": 0.1, "c-1.x": 0.1}
    for text, message in [
        ("0.8", "'0.8' is not NAME=WEIGHT; fix: write for instance /w NAME=0.8"),
        ("a=0,8", "'8' is not NAME=WEIGHT"),
        ("a=1 a=0", "a is given twice"),
        ("", "no weights"),
    ]:
        with pytest.raises(InputError) as caught:
            read_settings(text, "/w")
        assert message in str(caught.value)


# --- talking ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steering(finished_sweep: Path) -> Steering:
    return Steering(load_front(finished_sweep / "run"))


@pytest.fixture
def chat(steering: Steering) -> Chat:
    return Chat(SteeredPolicy(steering), at(0.75), GREEDY)


def answer(steering: Steering, kind: float, *said: str) -> str:
    """The greedy answer of the policy at a vector, by `Front.at` and a plain call of generate."""
    tokenizer = steering.reference.tokenizer
    roles = ["user", "assistant"] * len(said)
    ids = tokenize_prompt([{"role": r, "content": c} for r, c in zip(roles, said, strict=False)], tokenizer)
    out = steering.at(at(kind)).generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=8
    )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


def shown(text: str) -> str:
    return chatting.visible(text)


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_a_conversation_through_a_pipe(
    steering: Steering, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The command itself: the answers are those of the policies, before and after the weights moved."""
    typed(monkeypatch, "hello", "", "/w kind=0.5", "and now?", "/w", "/reset", "hello")
    arguments = ["chat", str(steering.folder), "--weights", "kind=0.75"]
    assert main([*arguments, "--temperature", "0", "--max-new-tokens", "8"]) == 0
    captured = capsys.readouterr()
    first = answer(steering, 0.75, "hello")
    second = answer(steering, 0.5, "hello", first, "and now?")
    between = "interpolated in weight space: 0.5 of kind0.75-concise0.25, 0.5 of kind0.25-concise0.75"
    expected = [
        "kind 0.75, concise 0.25: point kind0.75-concise0.25",
        shown(first),
        f"kind 0.5, concise 0.5: {between}",
        shown(second),
        f"kind 0.5, concise 0.5: {between}",
        "the conversation is forgotten",
        shown(answer(steering, 0.5, "hello")),
    ]
    assert captured.out == "".join(f"{line}\n" for line in expected)
    assert "objectives: kind, concise; /help shows what can be typed" in captured.err
    assert first != answer(steering, 0.5, "hello")


def test_two_settings_for_the_next_prompt(chat: Chat, steering: Steering, capsys: pytest.CaptureFixture[str]):
    """One below the other where there is no wide terminal; what was said is the first, and the weights stay."""
    for line in ("/vs kind=0.25", "hello", "again"):
        assert chat.do(line)
    here, there = answer(steering, 0.75, "hello"), answer(steering, 0.25, "hello")
    assert here != there
    assert capsys.readouterr().out == (
        "the next prompt also at kind 0.25, concise 0.75: point kind0.25-concise0.75\n"
        f"[kind 0.75, concise 0.25]\n{shown(here)}\n[kind 0.25, concise 0.75]\n{shown(there)}\n"
        f"{shown(answer(steering, 0.75, 'hello', here, 'again'))}\n"
    )


def test_side_by_side_where_it_is_wide(chat: Chat, steering: Steering):
    page = io.StringIO()
    chat._console = Console(file=page, force_terminal=True, width=120, highlight=False)
    for line in ("/vs kind=0.25", "hello"):
        assert chat.do(line)
    console = Console(file=io.StringIO(), force_terminal=True, width=120, highlight=False)
    with console.capture() as capture:
        answers = [shown(answer(steering, kind, "hello")) for kind in (0.75, 0.25)]
        console.print(columns(["kind 0.75, concise 0.25", "kind 0.25, concise 0.75"], answers))
    assert page.getvalue().endswith(capture.get())
    heading = capture.get().splitlines()[0]
    assert heading.index("kind 0.75, concise 0.25") < 60 < heading.index("kind 0.25, concise 0.75")


def test_help_and_quit(chat: Chat, capsys: pytest.CaptureFixture[str]):
    assert chat.do("/help")
    said = capsys.readouterr().out
    assert all(command in said for command in ("/w", "/vs", "/reset", "/help", "/quit", "Ctrl-C", "Ctrl-D"))
    assert not chat.do("/quit")
    assert not chat.do("  /quit ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/what", "error: /what: no such command; fix: see /help"),
        ("/w kind=2", "error: /w:weights: weights sum to 2"),
        ("/w kind=0.9", "is outside kind 0.25 to 0.75"),
        ("/vs kind=0.9", "is outside kind 0.25 to 0.75"),
        ("/vs", "error: /vs: no weights"),
    ],
)
def test_what_is_wrong_changes_nothing(
    chat: Chat, steering: Steering, monkeypatch, capsys: pytest.CaptureFixture[str], line: str, message: str
):
    typed(monkeypatch, line, "hello")
    chat.run()
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out.splitlines()[1:] == shown(answer(steering, 0.75, "hello")).splitlines()


def test_ctrl_c_stops_the_answer_not_the_program(chat: Chat, capsys: pytest.CaptureFixture[str], monkeypatch):
    """A real signal in the middle of an answer; what was written of it was said."""
    written: list[str] = []
    show = chatting._write

    def interrupting(text: str) -> None:
        written.append(text)
        show(text)
        if len(written) == 3:  # after the second token
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(chatting, "_write", interrupting)
    assert chat.do("hello")
    assert capsys.readouterr().out.endswith(" [stopped]\n")
    assert len(written) == 4  # and the note
    assert len(chat._conversation.exchanges) == 1
    assert chat.do("hello")
    assert not capsys.readouterr().out.endswith("[stopped]\n")


def test_ctrl_c_stops_both_of_two_answers(chat: Chat, capsys: pytest.CaptureFixture[str], monkeypatch):
    generated = []

    def stopped(ids: list[int], show: object) -> tuple[str, bool]:
        generated.append(ids)
        return "half", False

    monkeypatch.setattr(chat, "_generate", stopped)
    chat.do("/vs kind=0.25")
    chat.do("hello")
    assert len(generated) == 1
    assert "[kind 0.25" not in capsys.readouterr().out
    assert chat._conversation.exchanges == [("hello", "half")]


def test_another_signal_leaves(chat: Chat, monkeypatch):
    def terminated(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(chatting, "_write", terminated)
    with pytest.raises(Interrupted):
        chat.do("hello")


def test_ctrl_c_while_nothing_is_answered(chat: Chat, monkeypatch, capsys: pytest.CaptureFixture[str]):
    lines = iter([KeyboardInterrupt(), "/w", EOFError()])

    def read(prompt: str) -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(chatting, "_read_line", read)
    chat.run()
    point = "kind 0.75, concise 0.25: point kind0.75-concise0.25\n"
    assert capsys.readouterr().out == f"{point}\n/quit or Ctrl-D leaves\n{point}"


def test_an_answer_cannot_steer_the_terminal(tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    stream = chatting._Stream(tokenizer, chatting._write)
    stream.put(torch.tensor([[5, 6]]))  # the prompt
    evil = "\x1b[31mred\x07 \u202eturned\nnext\tline\r"
    for token in tokenizer(evil)["input_ids"]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert capsys.readouterr().out == "\\x1b[31mred\\x07 \\u202eturned\nnext\tline\\r"
    assert stream.text == evil  # what was said is kept as it was


def test_temperature_samples(steering: Steering):
    """At temperature 1 answers differ from each other."""
    chat = Chat(SteeredPolicy(steering), at(0.75), Sampling(temperature=1.0, max_new_tokens=8))
    torch.manual_seed(0)
    answers = []
    for _ in range(3):
        chat.do("hello")
        answers.append(chat._conversation.exchanges.pop()[1])
    assert len(set(answers)) > 1


def test_typed_text_that_is_no_text(chat: Chat, monkeypatch, capsys: pytest.CaptureFixture[str]):
    typed(monkeypatch, "half a character: \udce9")
    chat.run()
    assert chat._conversation.exchanges[0][0] == "half a character: ?"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8"))
    chat.run()
    assert "error: standard input: not utf-8; fix: type or pipe UTF-8" in capsys.readouterr().err


# --- what it refuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "--temperature: is -1; fix: give 0 for"),
        (["--temperature", "nan"], "--temperature: is nan"),
        (["--max-new-tokens", "0"], "--max-new-tokens: is 0; fix: give at least 1"),
        (["--max-new-tokens", "2048"], "--max-new-tokens: the model reads 2048 tokens in all"),
        (["--weights", "kind=0.9"], "is outside kind 0.25 to 0.75"),
        (["--weights", "friendly=0.9"], "--weights:weights.friendly: unknown objective"),
    ],
)
def test_refused(steering: Steering, capsys: pytest.CaptureFixture[str], options: list[str], message: str):
    assert main(["chat", str(steering.folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["chat", str(tmp_path)]) == 2
    assert "front.json: no such file; fix: name the folder of an evaluated sweep" in capsys.readouterr().err
