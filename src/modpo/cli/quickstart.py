"""`modpo quickstart`: the way from preferences to a front, with what the package brings along."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from modpo.base.progress import say

HELP = "train and draw a small front with the embedded model"
FOLDER = "runs/quickstart"


def add_arguments(parser: ArgumentParser) -> None:
    """--separate, --fast, --minutes, --output."""
    parser.add_argument("--separate", action="store_true", help="train each preference vector by itself, fewer of them")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--fast", action="store_true", help="the smallest size, however fast the machine is")
    size.add_argument(
        "--minutes", type=_minutes, metavar="N", help="that it may take; a slow machine does less (default: 15)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help=f"default: {FOLDER}, with -separate and -fast if they are given"
    )


def run(args: Namespace) -> int:
    """Run the embedded experiment."""
    from modpo.quickstart import run_quickstart

    output = args.output or default_folder(args)
    run_quickstart(output, separate=args.separate, fast=args.fast, minutes=args.minutes)
    if not args.separate:
        say(f"talk to it:   {_modpo()} chat {output} (/w positive=0.8 changes the weights while you talk)")
    return 0


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0
    if not 0 < minutes < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no number of minutes above 0")
    return minutes


def _modpo() -> str:
    """The command that is running, as it can be typed here: `make demo` runs it out of a folder that PATH lacks."""
    started = Path(sys.argv[0])
    if started.name != "modpo" or shutil.which("modpo"):
        return "modpo"
    return os.path.relpath(started)


def default_folder(args: Namespace) -> Path:
    """Each variant's own, for a folder belongs to one experiment."""
    return Path(FOLDER + "-separate" * args.separate + "-fast" * args.fast)
