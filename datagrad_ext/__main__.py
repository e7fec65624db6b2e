"""`python -m datagrad_ext`: dispatches to the sub-commands of `datagrad_ext.cli`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from datagrad_ext.cli import check, info, reproduce, train
from datagrad_ext.cli.errors import UserError

COMMANDS = {"train": train, "reproduce": reproduce, "check": check, "info": info}

DESCRIPTION = """\
datagrad_ext makes training with a penalty on the data gradient ∂L/∂x exact and fast: one line,

    model = datagrad_ext.accelerate(model)

and ordinary autograd code (torch.autograd.grad(..., create_graph=True), then backward) runs on the optimal
schedule.
"""

EPILOG = """\
examples:
  What runs natively on this machine, and why not otherwise:
    python -m datagrad_ext info
  Three trainings on real digits in under a minute:
    python -m datagrad_ext train --quick
  The full demonstration, with results.json and a picture:
    python -m datagrad_ext train --out results/demo
  DataGrad against its baselines and relatives, over seeds, with a report:
    python -m datagrad_ext reproduce --out results/mnist.jsonl --report results/mnist.md
  Are the gradients of your own model the same when it is accelerated?
    python -m datagrad_ext check --model mynet:Net --input 8,3,32,32

python -m datagrad_ext COMMAND --help tells more about each.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="python -m datagrad_ext",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in COMMANDS.values():
        module.add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; its exit status: 0 fine, 1 a mismatch, 2 a user's error, 130 interrupted, 141 unread."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    args.command_line = shlex.join(["python", "-m", "datagrad_ext", *arguments])
    try:
        status = COMMANDS[args.command].run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # who reads the output, such as head, has enough
        sys.stdout = None
        return 141
    except UserError as error:
        print(f"{parser.prog} {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{parser.prog} {args.command}: interrupted, nothing more is written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
