"""The command line: each subcommand has HELP, add_arguments and run, and a file of its own if it has options.

Nothing heavy is imported before a subcommand runs. Whatever goes wrong leaves as one line on standard error
and an exit code: 2 bad input, 3 environment, 4 integrity, 5 some points failed, 6 numeric, 130 and 143 interrupted,
1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TextIO

from modpo.base.errors import AGAIN, EnvironmentFault, InputError, ModpoError, Problem, is_out_of_memory, one_line
from modpo.base.interrupts import raised
from modpo.base.processors import limit_threads
from modpo.base.progress import working
from modpo.base.text import first_line, printable
from modpo.base.version import installed_version
from modpo.cli import bake, chat, quickstart, report, sweep, train
from modpo.cli.stages import ExperimentCommand, evaluate, inspect, reward, sample, score, sft
from modpo.cli.wording import typed

SUBCOMMANDS: dict[str, ModuleType | ExperimentCommand] = {
    "quickstart": quickstart,
    "inspect": inspect,
    "sft": sft,
    "sample": sample,
    "reward": reward,
    "score": score,
    "train": train,
    "sweep": sweep,
    "evaluate": evaluate,
    "report": report,
    "chat": chat,
    "bake": bake,
}

INTERRUPTED = 130  # 128 + SIGINT; `Interrupted` brings its own
BROKEN_PIPE = 141  # 128 + SIGPIPE

REFUSALS = {
    errno.ENOSPC: ("no space is left on this disk", "free some, or choose another folder with `output_dir`"),
    errno.EDQUOT: ("the disk quota is used up", "free some, or choose another folder with `output_dir`"),
    errno.EIO: ("the disk failed to read or write", "check it, or choose another folder with `output_dir`"),
    errno.EROFS: ("this file system is read-only", "choose a folder you can write with `output_dir`"),
    errno.EACCES: ("permission denied", "change its permissions, or choose another folder"),
    errno.EPERM: ("operation not permitted", "change its permissions, or choose another folder"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ENOTDIR: ("a part of this path is a file", "choose another folder"),
}

# What PEFT warns of at every model of a kind, each time that adapters are put on one: it has set right itself what it
# warns of, or (the tied embeddings) it was said before.
HARMLESS = (
    r"The following (rank|alpha)_pattern keys did not match|fan_in_fan_out is set to"
    r"|Model has `tie_word_embeddings=True`|Input and output embeddings are no longer tied"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Only --help and --version raise SystemExit."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # one progress bar at a time: ours
    limit_threads()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message=HARMLESS, module="peft")
    warnings.showwarning = _show_warning
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    try:
        with raised():
            code = _run(arguments)
            _flush()
        return code
    except (Exception, KeyboardInterrupt) as error:
        if _stdout_is_lost() and isinstance(error, BrokenPipeError):
            return BROKEN_PIPE
        trace = traceback.format_exc().splitlines() if "--debug" in arguments else []
        lines, code = _explain(error)
        with contextlib.suppress(OSError):
            for line in [*trace, *(f"error: {line}" for line in lines)]:
                print(printable(line), file=sys.stderr)
        return code


def _run(arguments: list[str]) -> int:
    parser = _parser()
    try:
        args = parser.parse_args(arguments)
    except SystemExit:
        _flush()
        raise
    if args.run is None:
        parser.print_help(sys.stderr)
        return InputError.exit_code
    with contextlib.nullcontext() if args.converses else working(f"modpo {args.command}", live=True):
        result: int = args.run(args)
    return result


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in the one line that every other error has."""

    def error(self, message: str) -> NoReturn:
        raise InputError(Problem(self.prog, "", message, f"see `{self.prog} --help`"))


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"modpo {installed_version()}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="modpo",
        description="Align one language model to several objectives, from preferences to a Pareto front.",
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action=_Version, nargs=0, help="show the version and leave")
    _add_debug(parser)
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, module in SUBCOMMANDS.items():
        command = commands.add_parser(
            name, help=module.HELP, description=f"{module.HELP.capitalize()}.", allow_abbrev=False
        )
        module.add_arguments(command)
        _add_debug(command)
        command.set_defaults(run=module.run, command=name, converses=module is chat)
    return parser


def _add_debug(parser: argparse.ArgumentParser) -> None:
    """`--debug` is taken before and behind the subcommand."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _explain(error: BaseException) -> tuple[list[str], int]:
    """The lines that say what went wrong, and the exit code."""
    if isinstance(error, ModpoError):
        return typed(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        line = f"interrupted; fix: {AGAIN} to go on"
        return [line], getattr(error, "exit_code", INTERRUPTED)
    if isinstance(error, OSError) and error.errno in REFUSALS:
        problem, fix = REFUSALS[error.errno]
        return [str(Problem(str(error.filename or "disk"), "", problem, fix))], EnvironmentFault.exit_code
    if is_out_of_memory(error):
        return [one_line(error)], EnvironmentFault.exit_code
    message = f"{type(error).__name__}: {first_line(error)}"
    return [f"{message}; fix: run again with --debug and report it"], ModpoError.exit_code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of ours as one line, those of libraries as Python writes them."""
    ours = Path(filename).is_relative_to(Path(__file__).parents[1])
    text = f"warning: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    with contextlib.suppress(OSError):
        print(text, end="", file=file or sys.stderr)


def _open_closed_streams() -> None:
    """Where standard output or error was closed at the start, what is written there goes nowhere."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_WRONLY)
            if not _is_open(number):  # or the next file that is opened would take its place
                os.dup2(descriptor, number)
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8"))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _flush() -> None:
    """Write standard output out now: a closed pipe or a full disk must not first show in the shutdown."""
    sys.stdout.flush()


def _stdout_is_lost() -> bool:
    """Whether standard output can no longer be written; if so, what is left of it goes nowhere."""
    try:
        _flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return _reader_is_gone()


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads: without a buffer, flushing does not tell."""
    if not hasattr(select, "poll"):
        return False
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no file behind it
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))
