"""A rectifier behind a normalisation becomes a part of it."""

from __future__ import annotations

from dataclasses import replace

from ..layers.activation import Rectifier
from ..layers.normalisation import Normalisation
from ..program import HostStep, Program, Step
from .readers import only_reader, readers_of


def rectify_norms(program: Program) -> Program:
    """Let a normalisation apply the ReLU or LeakyReLU that alone reads its value: gating is no pass of its own then."""
    steps: list[Step | HostStep | None] = list(program.steps)
    readers = readers_of(program)
    for i, step in enumerate(program.steps):
        if not isinstance(step, Step) or not isinstance(step.layer, Normalisation):
            continue
        after = only_reader(readers, step.output)
        following = None if after is None else steps[after]
        if after is None or not isinstance(following, Step) or not isinstance(following.layer, Rectifier):
            continue
        if not following.params:
            layer = step.layer.with_rectifier(following.layer)
            steps[i] = replace(step, layer=layer, output=following.output, name=f"{step.name} {following.name}")
            steps[after] = None
    return program.with_steps([step for step in steps if step is not None])
