"""A norm by running statistics becomes a part of the linear layer or convolution before it."""

from __future__ import annotations

from dataclasses import replace

from ..layers.convolution import Convolution
from ..layers.folded import FoldedNorm
from ..layers.linear import Linear
from ..layers.running_statistics import RunningNorm
from ..program import HostStep, Program, Step
from .readers import only_reader, readers_of


def fold_norms(program: Program) -> Program:
    """Fold a batch norm by running statistics into the layer with a weight whose value only it reads."""
    steps: list[Step | HostStep | None] = list(program.steps)
    readers = readers_of(program)
    for i, step in enumerate(program.steps):
        after = only_reader(readers, step.output)
        following = None if after is None else steps[after]
        if after is None or not isinstance(step, Step) or not isinstance(following, Step):
            continue
        norm = following.layer
        if isinstance(step.layer, (Linear, Convolution)) and isinstance(norm, RunningNorm) and norm.folds:
            layer = FoldedNorm(step.layer, len(step.params), norm)
            params, name = (*step.params, *following.params), f"{step.name} {following.name}"
            steps[i], steps[after] = None, replace(following, layer=layer, inputs=step.inputs, params=params, name=name)
    return program.with_steps([step for step in steps if step is not None])
