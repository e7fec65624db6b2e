"""Fusion passes: a program in, a faster program out (fewer steps, a better layout). Values keep their numbers."""

from __future__ import annotations

from ..program import Program
from ..single import Single
from .biases import move_biases
from .chains import collect_chains
from .layout import run_in_channels_last

PASSES = (move_biases, run_in_channels_last, collect_chains)


def fuse(program: Program) -> Program:
    """The program after every pass."""
    for fusion in PASSES:
        program = fusion(program)
    return Single.of(program)


__all__ = ["PASSES", "fuse"]
