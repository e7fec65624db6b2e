"""`python -m datagrad_ext info`: what runs natively, on which device, built how, why not otherwise."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from datagrad_ext._native import backends

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `info`."""
    subparsers.add_parser("info", help="print which ops run natively, on which device, and why not otherwise")


def run(args: argparse.Namespace) -> int:
    """Print the report; the exit status is 0 whatever it says."""
    print(backends())
    return 0
