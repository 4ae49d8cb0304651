"""`modpo bake`: the policy at any preference vector of a front, as files that others load."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from modpo.cli.stages import add_trust_argument
from modpo.cli.weights_option import OPTION, read_weights_option

HELP = "write the policy at any preference vector as an adapter"


def add_arguments(parser: ArgumentParser) -> None:
    """FOLDER, --weights, --output, --rank or --merge, --trust-remote-code."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a sweep's folder, with its front.json")
    parser.add_argument(OPTION, required=True, metavar="NAME=W,NAME=W", help="for instance positive=0.7,concise=0.3")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="where the policy goes")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--rank", type=int, metavar="R", help="compress the adapter to this rank; default: exact")
    how.add_argument("--merge", action="store_true", help="write a whole model, base included")
    add_trust_argument(parser)


def run(args: Namespace) -> int:
    """Write the policy, and say what compressing it has lost."""
    from modpo.base.progress import say
    from modpo.pipeline.preflight import require_writable
    from modpo.policies.steered_front import load_front
    from modpo.policies.steering import Steering

    steering = Steering(load_front(args.folder), trust_remote_code=args.trust_remote_code)
    weights = read_weights_option(args.weights, steering.names)
    require_writable(args.output, "--output")
    lost = steering.bake(weights, args.output, rank=args.rank, merge=args.merge)
    about = f", relative error of the weight update {lost:.3g}" if args.rank else ""
    say(f"{args.output}: written{about}")
    return 0
