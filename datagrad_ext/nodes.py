"""Nodes in C++ (csrc/nodes) in place of the two Functions, for a program that is one layer whose sweeps C++ knows.

A small network spends more on Functions of Python than on its sweeps. The nodes do what `autograd.py` does, by classes
of torch's engine that differ between releases: they are compiled for one torch, and with any other the Functions run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ._native import direct_ops, nodes
from .layers.compiled import ChainSweeps, Compiled, ImageSweeps
from .program import Program
from .reference import Reference

Nodes = Callable[[Any, Any, Any], Any]
"""(x, params, host values) -> y, or None where the Functions must take the call."""

_COMPILER = "torch._dynamo.compiled_autograd"  # imported by who compiles backwards; it sees through Functions alone
_MOST_SWEEPS = 64  # that a network remembers


class _Reference(Reference):
    """That of a network whose nodes keep what the ops saved, not what the layer in Python would have."""

    def __init__(self, program: Program, warned: set[str], compiled: Compiled) -> None:
        super().__init__(program, warned)
        self._saved = compiled.saved

    def reverse(self, inputs: Any, params: Any, kept: tuple, *rest: Any) -> Any:
        return super().reverse(inputs, params, [self._saved(*kept)], *rest)

    def tangent(self, inputs: Any, params: Any, kept: tuple, *rest: Any) -> Any:
        return super().tangent(inputs, params, [self._saved(*kept)], *rest)


class _Sweeps(dict[Any, Any]):
    """The sweeps in C++ by what describes them."""

    def __missing__(self, described: ChainSweeps | ImageSweeps) -> Any:
        if len(self) >= _MOST_SWEEPS:
            self.clear()
        make = nodes.Chain if isinstance(described, ChainSweeps) else nodes.Images  # type: ignore[union-attr]
        found = self[described] = make(direct_ops(), *[getattr(described, field.name) for field in fields(described)])
        return found


def nodes_of(program: Program, compiled: Compiled | None, warned: set[str]) -> Nodes | None:
    """The nodes of a program, if it has any; `compiled`: that of its only layer."""
    if nodes is None or compiled is None:
        return None
    sweeps_of, operands, sweeps = compiled.sweeps, compiled.operands, _Sweeps()
    # The program keeps its nodes; a copy that they keep closes no circle, which Python could not see through C++.
    reference = _Reference(program.with_steps(program.steps), warned, compiled)
    network = nodes.Network(direct_ops(), reference, compiled.eps, compiled.parts)

    def run(x: Any, params: Any, host: Any) -> Any:
        compiler = sys.modules.get(_COMPILER)
        if not x.is_cpu or (compiler is not None and compiler.compiled_autograd_enabled):
            return None
        given, found = operands(x, params, host), sweeps_of(x)
        if given is None or found is None:
            return None
        described, moving = found
        return network(x, params, sweeps[described], given, moving)

    return run


def saved_bytes(y: Any) -> int:
    """What the forward keeps that made y, besides parameters."""
    return nodes.saved_bytes(y)  # type: ignore[union-attr]
