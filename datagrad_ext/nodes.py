"""Nodes in C++ (csrc/nodes) in place of the two Functions, for a program that is one layer whose sweeps C++ knows.

A small network spends more on Functions of Python than on its sweeps. The nodes do what `autograd.py` does, by classes
of torch's engine that differ between releases: they are compiled for one torch, and with any other the Functions run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ._native import direct_ops, nodes
from .program import Program
from .reference import Reference

Nodes = Callable[[Any, Any], Any]
"""(x, params) -> y, or None where the Functions must take the call."""

_COMPILER = "torch._dynamo.compiled_autograd"  # imported by who compiles backwards; it sees through Functions alone


def nodes_of(program: Program, compiled: tuple[Any, ...] | None, warned: set[str]) -> Nodes | None:
    """The nodes of a program, if it has any; `compiled`: that of its only layer."""
    if nodes is None or compiled is None:
        return None
    # The program keeps its nodes; a copy that they keep closes no circle, which Python could not see through C++.
    network = nodes.Network(direct_ops(), Reference(program.with_steps(program.steps), warned), *compiled)

    def run(x: Any, params: Any) -> Any:
        compiler = sys.modules.get(_COMPILER)
        return None if compiler is not None and compiler.compiled_autograd_enabled else network(x, params)

    return run
