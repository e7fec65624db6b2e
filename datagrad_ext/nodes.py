"""Nodes in C++ (csrc/nodes) in place of the two Functions, for a program that is one layer whose sweeps C++ knows.

A small network spends more on Functions of Python than on its sweeps. The nodes do what `autograd.py` does, by classes
of torch's engine that differ between releases: they are compiled for one torch, and with any other the Functions run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._native import direct_ops, nodes
from .program import Program
from .reference import Reference

Nodes = Callable[[Any, Any], Any]
"""(x, params) -> y, or None where the Functions must take the call."""


def nodes_of(program: Program, compiled: tuple[Any, ...] | None, warned: set[str]) -> Nodes | None:
    """The nodes of a program, if it has any; `compiled`: that of its only layer."""
    if nodes is None or compiled is None:
        return None
    # The program keeps its nodes; a copy that they keep closes no circle, which Python could not see through C++.
    return nodes.Network(direct_ops(), Reference(program.with_steps(program.steps), warned), *compiled)
