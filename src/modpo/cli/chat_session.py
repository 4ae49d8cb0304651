"""Talking to a front in the terminal: one base in memory, the weights moved between prompts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase, TextStreamer

from modpo.base import simplex
from modpo.base.errors import InputError, ModpoError, Problem
from modpo.base.progress import say
from modpo.base.simplex import Weights
from modpo.base.text import printable, visible
from modpo.cli.weights_option import OPTION, read_settings
from modpo.cli.wording import typed
from modpo.forward.padded_generation import bare_generation
from modpo.policies.steered_front import load_front
from modpo.policies.steering import SteeredPolicy, Steering

WIDE = 100  # columns of a terminal that has room for two answers side by side
CTRL_C = 130  # the exit code of an interruption from the keyboard
HELP = """\
/w NAME=0.8      move the weights, one or more; the others share what is left as they did
/w               show the weights, and what the policy is built from
/vs NAME=0.1     answer the next prompt at these weights too
/reset           forget the conversation
/help            show this
/quit            leave, as Ctrl-D does; Ctrl-C stops an answer"""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; at temperature 0 the likeliest token each time."""

    temperature: float = 0.7
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            fix = "give 0 for the likeliest token each time, or a number around 1"
            raise InputError(Problem("--temperature", "", f"is {self.temperature:g}", fix))
        if self.max_new_tokens < 1:
            raise InputError(Problem("--max-new-tokens", "", f"is {self.max_new_tokens}", "give at least 1"))


def open_chat(folder: Path, settings: str | None, sampling: Sampling, *, trust_remote_code: bool = False) -> Chat:
    """A conversation with the front in a folder, to be run.

    Args:
        settings: the weights to begin with, `positive=0.7`; None: the middle of the front.

    Raises:
        InputError: no front there, no such weights, or no policy at them.
    """
    steering = Steering(load_front(folder), trust_remote_code=trust_remote_code)
    weights = steering.middle()
    if settings is not None:
        weights = move(weights, read_settings(settings, steering.names, OPTION), OPTION)
    steering.source(weights)  # what cannot be steered is refused before a model is read
    chat = Chat(SteeredPolicy(steering), weights, sampling)
    say(f"objectives: {', '.join(steering.names)}; /help shows what can be typed")
    return chat


class Chat:
    """A conversation with a policy whose weights move.

    Args:
        weights: to begin with.
    """

    def __init__(self, policy: SteeredPolicy, weights: Weights, sampling: Sampling) -> None:
        self._policy, self._sampling, self._console = policy, sampling, Console(highlight=False)
        context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        if sampling.max_new_tokens >= context:
            fix = "leave room for a prompt"
            raise InputError(Problem("--max-new-tokens", "", f"the model reads {context} tokens in all", fix))
        self._conversation = policy.conversation(context - sampling.max_new_tokens)
        self._other: Weights | None = None  # where the next prompt is answered too
        self._steer(weights)

    def run(self) -> None:
        """Read and do, line by line, until the input ends or says /quit."""
        typing = sys.stdin.isatty()
        if typing:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (input() then edits and remembers lines)
        going = True
        self._show_weights()
        while going:
            try:
                line = _read_line(f"{simplex.label(self._weights)}> " if typing else "")
                going = self.do(line)
            except EOFError:
                going = False
                _write("\n" if typing else "")
            except KeyboardInterrupt as interruption:
                _require_ctrl_c(interruption)
                _write("\n/quit or Ctrl-D leaves\n")
            except ModpoError as error:
                for problem in typed(error):
                    say(f"error: {problem}")

    def do(self, line: str) -> bool:
        """Do what a line says; whether to go on.

        Raises:
            InputError: no such command or weights.
        """
        command, _, rest = line.strip().partition(" ")
        if command == "/quit":
            return False
        if command == "/help":
            _write(f"{HELP}\n")
        elif command == "/reset":
            self._conversation.exchanges.clear()
            _write("the conversation is forgotten\n")
        elif command == "/w":
            if rest.strip():
                self._steer(self._moved(rest, command))
            self._show_weights()
        elif command == "/vs":
            self._compare_next(self._moved(rest, command))
        elif command.startswith("/"):
            raise InputError(Problem(command, "", "no such command", "see /help"))
        elif command:
            self._answer(line.strip())
        return True

    def _moved(self, settings: str, command: str) -> Weights:
        return move(self._weights, read_settings(settings, list(self._weights), command), command)

    def _steer(self, weights: Weights) -> None:
        self._made_of = self._policy.steer(weights)
        self._weights = weights

    def _show_weights(self) -> None:
        _write(f"{simplex.label(self._weights)}: {printable(self._made_of)}\n")

    def _compare_next(self, weights: Weights) -> None:
        made_of = self._policy.steer(weights)  # whether it can be had is known now
        self._policy.steer(self._weights)
        self._other = weights
        _write(f"the next prompt also at {simplex.label(weights)}: {printable(made_of)}\n")

    def _answer(self, prompt: str) -> None:
        """Answer at the weights, and at others where asked for; the first answer goes into the conversation."""
        ids = self._conversation.ids(prompt)
        other, self._other = self._other, None
        if other is None:
            answer, whole = self._generate(ids, _write)
            _write("\n" if whole else " [stopped]\n")
        elif self._console.is_terminal and self._console.width >= WIDE:
            answer = self._side_by_side(ids, [self._weights, other])
        else:
            answer = self._one_by_one(ids, [self._weights, other])
        self._conversation.exchanges.append((prompt, answer))

    def _one_by_one(self, ids: list[int], settings: Sequence[Weights]) -> str:
        answers = []
        for weights in settings:
            _write(f"[{simplex.label(weights)}]\n")
            answer, whole = self._at(weights, ids, _write)
            answers.append(answer)
            _write("\n" if whole else " [stopped]\n")
            if not whole:
                break
        return answers[0]

    def _side_by_side(self, ids: list[int], settings: Sequence[Weights]) -> str:
        shown, answers = ["" for _ in settings], []
        headings = [simplex.label(weights) for weights in settings]
        with Live(columns(headings, shown), console=self._console, transient=True) as live:
            for i, weights in enumerate(settings):

                def show(piece: str, i: int = i) -> None:
                    shown[i] += piece
                    live.update(columns(headings, shown))

                answer, whole = self._at(weights, ids, show)
                answers.append(answer)
                if not whole:
                    shown[i] += " [stopped]"
                    break
        self._console.print(columns(headings, shown))
        return answers[0]

    def _at(self, weights: Weights, ids: list[int], show: Callable[[str], None]) -> tuple[str, bool]:
        """`_generate` at other weights for once."""
        self._policy.steer(weights)
        try:
            return self._generate(ids, show)
        finally:
            self._policy.steer(self._weights)

    def _generate(self, ids: list[int], show: Callable[[str], None]) -> tuple[str, bool]:
        """An answer, shown as it is written, and whether it is whole: Ctrl-C stops it."""
        model, tokenizer, sampling = self._policy.model, self._policy.tokenizer, self._sampling
        drawn: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        input_ids = torch.tensor([ids], device=next(model.parameters()).device)
        stream = _Stream(tokenizer, show, self._conversation.ends)
        try:
            with bare_generation(model):
                model.generate(
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    max_new_tokens=sampling.max_new_tokens,
                    eos_token_id=self._conversation.ends,
                    pad_token_id=tokenizer.pad_token_id,
                    streamer=stream,
                    **drawn,
                )
        except KeyboardInterrupt as interruption:
            _require_ctrl_c(interruption)
            return stream.text, False
        return stream.text, True


class _Stream(TextStreamer):
    """Shows an answer word by word, as it is written, and keeps it, without the token that ends it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], None], ends: Collection[int] = ()
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._show, self._ends, self.text = show, ends, ""

    def put(self, value: torch.Tensor) -> None:
        """Take the next token, or first the prompt."""
        if self.next_tokens_are_prompt or value.reshape(-1)[-1].item() not in self._ends:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take what is final of the answer."""
        self.text += text
        self._show(visible(text))


def move(weights: Weights, given: Mapping[str, Any], where: str) -> Weights:
    """Some weights as they are given; the others share what is left as they did, or alike where they had none.

    Raises:
        InputError: an unknown objective, no weight, or more than 1 in all.
    """
    names = list(weights)
    simplex.read_weights({**dict.fromkeys(names, 1.0), **given}, names, where=where, normalize=True)
    others = {name: weight for name, weight in weights.items() if name not in given}
    left, before = 1 - sum(given.values()), sum(others.values())
    if left < -simplex.SUM_TOLERANCE:
        problem, fix = f"weights sum to {1 - left:g}", "they sum to 1 with the others"
        raise InputError(Problem(where, "weights", problem, fix))
    moved = {n: max(left, 0.0) * (w / before if before else 1 / len(others)) for n, w in others.items()}
    return simplex.read_weights({n: round(float({**moved, **given}[n]), 9) for n in names}, names, where=where)


def columns(headings: Sequence[str], answers: Sequence[str]) -> Table:
    """Answers side by side, each below its heading."""
    table = Table(box=None, expand=True, pad_edge=False, padding=(0, 4, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(Text(heading), ratio=1, overflow="fold")
    table.add_row(*(Text(answer) for answer in answers))
    return table


def _read_line(prompt: str) -> str:
    """A line of standard input; what is no character in it is replaced."""
    try:
        return input(prompt).encode("utf-8", "replace").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(Problem("standard input", "", f"not {error.encoding}", "type or pipe UTF-8")) from error


def _write(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)


def _require_ctrl_c(interruption: KeyboardInterrupt) -> None:
    """Raise it again where it came from elsewhere: another signal asks the program to leave."""
    if getattr(interruption, "exit_code", CTRL_C) != CTRL_C:
        raise interruption
