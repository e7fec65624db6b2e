"""A norm by running statistics becomes a part of the convolution before it."""

from __future__ import annotations

from dataclasses import replace

from ..layers.convolution import Convolution
from ..layers.folded import FoldedConvolution
from ..layers.running_statistics import RunningNorm
from ..program import HostStep, Program, Step
from .readers import only_reader, readers_of


def fold_norms(program: Program) -> Program:
    """Fold a norm into a convolution whose value only it reads, where the norm takes no input of another rank."""
    steps: list[Step | HostStep | None] = list(program.steps)
    readers = readers_of(program)
    for i, step in enumerate(program.steps):
        after = only_reader(readers, step.output)
        following = None if after is None else steps[after]
        if after is None or not isinstance(step, Step) or not isinstance(following, Step):
            continue
        convolution, norm = step.layer, following.layer
        if not isinstance(convolution, Convolution) or not isinstance(norm, RunningNorm):
            continue
        if not convolution.transposed and norm.rank == convolution.dims + 2:
            layer = FoldedConvolution(convolution, len(step.params), norm)
            fused = replace(step, layer=layer, params=(*step.params, *following.params), host=following.host)
            steps[i], steps[after] = replace(fused, output=following.output, name=f"{step.name} {following.name}"), None
    return program.with_steps([step for step in steps if step is not None])
