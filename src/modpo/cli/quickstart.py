"""`modpo quickstart`: the way from preferences to a front, with what the package brings along."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

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

    run_quickstart(args.output or default_folder(args), separate=args.separate, fast=args.fast)
    return 0


def default_folder(args: Namespace) -> Path:
    """Each variant's own, for a folder belongs to one experiment."""
    return Path(FOLDER + "-separate" * args.separate + "-fast" * args.fast)
