"""A rectifier becomes a part of the normalisation or sum before it."""

from __future__ import annotations

from dataclasses import replace

from ..layers.activation import Rectifier
from ..program import HostStep, Program, Step
from .readers import only_reader, readers_of


def take_in_rectifiers(program: Program) -> Program:
    """Let a layer `with_rectifier` apply the ReLU or LeakyReLU that alone reads its value.

    A normalisation gates what its own passes read and write. A sum, the end of a residual block, is one pass with it.
    """
    steps: list[Step | HostStep | None] = list(program.steps)
    readers = readers_of(program)
    for i, step in enumerate(program.steps):
        after = only_reader(readers, step.output)
        following = None if after is None else steps[after]
        if after is None or not isinstance(step, Step) or not isinstance(following, Step) or following.params:
            continue
        if isinstance(following.layer, Rectifier) and hasattr(step.layer, "with_rectifier"):
            layer = step.layer.with_rectifier(following.layer)
            if layer is not None:
                steps[i] = replace(step, layer=layer, output=following.output, name=f"{step.name} {following.name}")
                steps[after] = None
    return program.with_steps([step for step in steps if step is not None])
