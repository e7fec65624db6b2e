"""A program of one step: the sweeps of `Program` without the numbered values, which cost as much as a small layer.

Most small networks are one chain, and every call of `datagrad_ext.functional` is one layer. What a sweep consumes, the
layer alone holds, so that it can let go of a part before it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .layers import Tensors
from .nodes import Nodes, nodes_of, saved_bytes
from .program import Flags, Left, Program, Ref, Row, Step


class Single(Program):
    """One step that reads the only input and every parameter in order, and makes the only output."""

    @staticmethod
    def of(program: Program) -> Program:
        """The same program in this form, if it has it."""
        if len(program.steps) != 1 or program.n_inputs != 1 or not isinstance(program.steps[0], Step):
            return program
        step = program.steps[0]
        fits = step.inputs == (0,) and program.outputs == (step.output,)
        if not fits or step.params != tuple(range(program.n_params)) or any(isinstance(a, Ref) for a in step.host):
            return program
        return Single(program.n_inputs, program.n_params, program.steps, program.outputs)

    steps: tuple[Step]

    def by_nodes(self, x: Any, params: Sequence[Any], warned: set[str]) -> Any:
        """y, connected to autograd by nodes in C++, or None where the two Functions must take the call (`nodes.py`)."""
        if "nodes" not in self._plans:
            self._plans["nodes"] = nodes_of(self, self.steps[0].layer.compiled, warned)
        nodes: Nodes | None = self._plans["nodes"]
        y = None if nodes is None else nodes(x, params, self.steps[0].host)
        if y is not None and not self.rows:  # the first run is described
            self.rows.append(Row(self.steps[0], tuple(x.shape), tuple(y.shape), saved_bytes(y), "cpu"))
        return y

    def thetas(self, params: Sequence[Any]) -> list[Tensors]:
        return [tuple(params)]

    def forward(self, inputs: Sequence[Any], thetas: list[Tensors]) -> tuple[list[Any], list[Any]]:
        if not self.rows:  # the first run is described
            return super().forward(inputs, thetas)
        step = self.steps[0]
        y, kept = step.layer.forward(tuple(inputs), thetas[0], *step.host)
        return [y], [kept]

    def data_gradient(
        self, saved: list[Any], thetas: list[Tensors], cotangents: Sequence[Any], wanted: Flags
    ) -> tuple[list[Any], list[Any]]:
        layer, g = self.steps[0].layer, cotangents[0]
        if g is None or True not in wanted:
            return [None], [None]
        bars, record = layer.data_vjp(saved[0], thetas[0], g, wanted)
        return list(bars), [record if layer.paired else None]

    def tangent(
        self,
        saved: list[Any],
        thetas: list[Tensors],
        records: list[Any],
        seeds: Sequence[Any],
        wanted: Flags,
        left: Left | None,
    ) -> list[Any]:
        layer = self.steps[0].layer
        if seeds[0] is None or (records[0] is None and layer.paired):
            return [None]
        if left is None or not layer.paired:
            return [layer.jvp(saved[0], thetas[0], tuple(seeds), records.pop()) if wanted[0] else None]
        sums = left.sums.get(0) or (None,) * self.n_params
        y_tangent, pair, left.sums[0] = layer.data_jvp(
            saved[0], thetas[0], tuple(seeds), records.pop(), wanted[0], left.wanted_params, sums
        )
        if pair is not None:
            left.pairs.setdefault(0, []).append(pair)
        return [y_tangent if wanted[0] else None]

    def reverse(self, saved: list[Any], thetas: list[Tensors], cotangents: Sequence[Any], left: Left) -> list[Any]:
        zeta, layer = cotangents[0], self.steps[0].layer
        sums = left.sums.pop(0, None) or (None,) * self.n_params
        if (zeta is None and not left.pairs.get(0)) or True not in left.wanted:
            return [None, *sums]
        wanted, params = left.wanted_inputs, left.wanted_params
        bars, sums = layer.reverse(saved.pop(), thetas[0], zeta, left.pairs.pop(0, []), wanted, params, sums)
        x_bar = bars[0] if left.wanted_inputs[0] else None
        if False not in left.wanted_params:
            return [x_bar, *sums]
        return [x_bar, *[bar if want else None for bar, want in zip(sums, left.wanted_params, strict=True)]]
