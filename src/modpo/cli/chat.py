"""`modpo chat`: talk to a front, and move its weights while talking."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from modpo.base.progress import working
from modpo.cli.stages import add_trust_argument

HELP = "talk to a front, and move the weights"


def add_arguments(parser: ArgumentParser) -> None:
    """FOLDER, --weights, --temperature, --max-new-tokens, --trust-remote-code."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a sweep's folder, with its front.json")
    parser.add_argument(
        "--weights", metavar="NAME=W,NAME=W", help="to begin with, for instance positive=0.7; default: the middle"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.7, metavar="T", help="of sampling; 0: no sampling; default: %(default)s"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="length of an answer; default: %(default)s"
    )
    add_trust_argument(parser)


def run(args: Namespace) -> int:
    """Talk until the input ends."""
    with working("modpo chat", live=True):  # not while talking: that is neither to be interrupted nor drawn over
        from modpo.cli.chat_session import Sampling, open_chat

        sampling = Sampling(args.temperature, args.max_new_tokens)
        chat = open_chat(args.folder, args.weights, sampling, trust_remote_code=args.trust_remote_code)
    chat.run()
    return 0
