"""`modpo quickstart`: the way from preferences to a front, with what the package brings along."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from modpo.base.progress import say

HELP = "train and draw a small front with the embedded model"
FOLDER = "runs/quickstart"


def add_arguments(parser: ArgumentParser) -> None:
    """--separate, --fast, --output."""
    parser.add_argument("--separate", action="store_true", help="train each preference vector by itself, fewer of them")
    parser.add_argument("--fast", action="store_true", help="fewer prompts and vectors")
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help=f"default: {FOLDER}, with -separate and -fast if they are given"
    )


def run(args: Namespace) -> int:
    """Run the embedded experiment."""
    from modpo.quickstart import run_quickstart

    output = args.output or default_folder(args)
    run_quickstart(output, separate=args.separate, fast=args.fast)
    if not args.separate:
        say(f"talk to it:   {_modpo()} chat {output} (/w positive=0.8 changes the weights while you talk)")
    return 0


def _modpo() -> str:
    """The command that is running, as it can be typed here: `make demo` runs it out of a folder that PATH lacks."""
    started = Path(sys.argv[0])
    if started.name != "modpo" or shutil.which("modpo"):
        return "modpo"
    return os.path.relpath(started)


def default_folder(args: Namespace) -> Path:
    """Each variant's own, for a folder belongs to one experiment."""
    return Path(FOLDER + "-separate" * args.separate + "-fast" * args.fast)
