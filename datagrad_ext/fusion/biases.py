"""Biases move to the activation behind their layer."""

from __future__ import annotations

from dataclasses import replace

from ..program import Program, Step
from .readers import only_reader, readers_of


def move_biases(program: Program) -> Program:
    """Let an activation add the bias of the layer before it, so that bias, gate and bias gradient are one pass.

    For every layer with a `bias_dim` and a bias whose value goes to one activation without a bias, and nowhere else.
    """
    steps = list(program.steps)
    readers = readers_of(program)
    for i, step in enumerate(steps):
        if not isinstance(step, Step) or not hasattr(step.layer, "bias_dim") or len(step.params) < 2:
            continue
        after = only_reader(readers, step.output)
        if after is None:
            continue
        following = steps[after]
        if isinstance(following, Step) and hasattr(following.layer, "with_bias") and not following.params:
            layer = following.layer.with_bias(step.layer.bias_dim)
            steps[after] = replace(following, layer=layer, params=step.params[1:])
            steps[i] = replace(step, params=step.params[:1])
    return program.with_steps(steps)
