"""Nodes in C++ (csrc/nodes) in place of the two Functions, for a program that is one layer whose sweeps C++ knows.

A small network spends more on Functions of Python than on its sweeps. The nodes do what `autograd.py` does, by classes
of torch's engine that differ between releases: they are compiled for one torch, and with any other the Functions run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ._native import direct_ops, nodes
from .layers.compiled import Compiled
from .program import Program
from .reference import Reference

Nodes = Callable[[Any, Any, Any], Any]
"""(x, params, host values) -> y, or None where the Functions must take the call."""

_COMPILER = "torch._dynamo.compiled_autograd"  # imported by who compiles backwards; it sees through Functions alone


class _Reference(Reference):
    """That of a network whose nodes keep of the forward no more than what its folds keep."""

    def __init__(self, program: Program, warned: set[str], compiled: Compiled) -> None:
        super().__init__(program, warned)
        self._saved = compiled.saved

    def reverse(self, inputs: Any, params: Any, kept: Tensor | None, *rest: Any) -> Any:
        return super().reverse(inputs, params, [self._saved(kept)], *rest)

    def tangent(self, inputs: Any, params: Any, kept: Tensor | None, *rest: Any) -> Any:
        return super().tangent(inputs, params, [self._saved(kept)], *rest)


def nodes_of(program: Program, compiled: Compiled | None, warned: set[str]) -> Nodes | None:
    """The nodes of a program, if it has any; `compiled`: that of its only layer."""
    if nodes is None or compiled is None:
        return None
    c, operands = compiled, compiled.operands
    # The program keeps its nodes; a copy that they keep closes no circle, which Python could not see through C++.
    reference = _Reference(program.with_steps(program.steps), warned, compiled)
    of_links = c.links, c.inner_links, c.places, c.is_weight, c.is_below, c.curved
    network = nodes.Network(direct_ops(), reference, *of_links, c.eps, c.parts)

    def run(x: Any, params: Any, host: Any) -> Any:
        compiler = sys.modules.get(_COMPILER)
        if not x.is_cpu or (compiler is not None and compiler.compiled_autograd_enabled):
            return None
        if operands is None:
            return network(x, params, ())
        given = operands(x, tuple(params), host)
        return None if given is None else network(x, params, given)

    return run
