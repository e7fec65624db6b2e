"""A convolution takes in the rectifier behind it."""

from __future__ import annotations

from dataclasses import replace

from ..layers.activation import Rectifier
from ..layers.convolution import Convolution
from ..layers.rectified_convolution import RectifiedConvolution
from ..program import HostStep, Program, Step
from .readers import only_reader, readers_of


def rectify_convolutions(program: Program) -> Program:
    """Every two-dimensional convolution and the ReLU or LeakyReLU that alone reads its value, as one step.

    The bias is the rectifier's by then (`move_biases`).
    """
    steps: list[Step | HostStep | None] = list(program.steps)
    readers = readers_of(program)
    for i, step in enumerate(program.steps):
        after = only_reader(readers, step.output)
        following = None if after is None else steps[after]
        if after is None or not isinstance(step, Step) or not isinstance(following, Step):
            continue
        if not isinstance(following.layer, Rectifier) or not _may_be_small(step):
            continue
        layer = RectifiedConvolution(step.layer, following.layer)  # type: ignore[arg-type]
        params, name = (*step.params, *following.params), f"{step.name} {following.name}"
        steps[i] = replace(step, layer=layer, output=following.output, params=params, name=name)
        steps[after] = None
    return program.with_steps([step for step in steps if step is not None])


def _may_be_small(step: Step) -> bool:
    layer = step.layer
    return isinstance(layer, Convolution) and layer.dims == 2 and not layer.transposed and len(step.params) == 1
