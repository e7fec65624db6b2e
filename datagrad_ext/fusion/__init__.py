"""Fusion passes: a program in, a program with fewer and larger steps out. Values keep their numbers."""

from __future__ import annotations

from ..program import Program
from .biases import move_biases
from .chains import collect_chains

PASSES = (move_biases, collect_chains)


def fuse(program: Program) -> Program:
    """The program after every pass."""
    for fusion in PASSES:
        program = fusion(program)
    return program


__all__ = ["PASSES", "fuse"]
