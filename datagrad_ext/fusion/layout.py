"""Convolutions and what stands between them run in channels_last where that pays, whatever the input's layout.

A part begins at a two-dimensional convolution and goes on over layers that follow the layout of their input. What
another layer or the caller reads leaves the part in contiguous memory.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from ..layers.memory_format import enter, leave, pays
from ..program import HostStep, Program, Ref, Step


def run_in_channels_last(program: Program) -> Program:
    """The program with borders around the parts that may run in channels_last."""
    rewriting = _Rewriting(program)
    for step in program.steps:
        rewriting.add(step)
    return rewriting.finish()


class _Rewriting:
    """The steps so far. `_inside`: value -> its number in channels_last, and the host value that says whether it is.

    Inside a part values have new numbers; the old one is that of the value outside, made when somebody reads it.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._steps: list[Step | HostStep] = []
        self._numbers = itertools.count(max([program.n_inputs, *[step.output + 1 for step in program.steps]]))
        self._inside: dict[int, tuple[int, int]] = {}
        self._outside = set(range(program.n_inputs))

    def add(self, step: Step | HostStep) -> None:
        if isinstance(step, Step) and step.reads == step.inputs and self._follows(step):
            inner, crosses = zip(*[self._inside[i] for i in step.inputs], strict=True)
            self._inside[step.output] = next(self._numbers), crosses[0]
            self._steps.append(replace(step, inputs=tuple(inner), output=self._inside[step.output][0]))
            return
        for value in step.reads:
            self._leave(value)
        self._steps.append(step)
        self._outside.add(step.output)

    def finish(self) -> Program:
        for value in self._program.outputs:
            self._leave(value)
        return self._program.with_steps(self._steps)

    def _follows(self, step: Step) -> bool:
        """Whether the step is one of a part; a convolution may begin it."""
        layer = step.layer
        if layer.wants_channels_last and step.inputs[0] not in self._inside:
            self._enter(step.inputs[0])
        return layer.follows_layout and all(i in self._inside for i in step.inputs)

    def _enter(self, value: int) -> None:
        crosses, inner = next(self._numbers), next(self._numbers)
        self._steps.append(HostStep(lambda values: pays(values[value]), (value,), crosses, "channels_last pays"))
        self._steps.append(Step(enter(), (value,), inner, host=(Ref(crosses),)))
        self._inside[value] = inner, crosses

    def _leave(self, value: int) -> None:
        """Make the value as the rest of the network reads it."""
        if value not in self._outside:
            inner, crosses = self._inside[value]
            self._steps.append(Step(leave(), (inner,), value, host=(Ref(crosses),)))
            self._outside.add(value)
