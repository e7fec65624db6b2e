"""A convolution takes in the rectifier behind it."""

from __future__ import annotations

from dataclasses import replace

from ..layers.activation import Rectifier
from ..layers.convolution import Convolution
from ..layers.rectified_convolution import RectifiedConvolution
from ..program import Program, Step
from .joining import join_pairs


def rectify_convolutions(program: Program) -> Program:
    """Every two-dimensional convolution and the ReLU or LeakyReLU that alone reads its value, as one step.

    The bias is the rectifier's by then (`move_biases`).
    """
    return join_pairs(program, _join)


def _join(step: Step, following: Step) -> Step | None:
    convolution, rectifier = step.layer, following.layer
    if not isinstance(convolution, Convolution) or not isinstance(rectifier, Rectifier):
        return None
    if convolution.dims != 2 or convolution.transposed or len(step.params) != 1:
        return None
    layer = RectifiedConvolution(convolution, rectifier)
    params, name = (*step.params, *following.params), f"{step.name} {following.name}"
    return replace(step, layer=layer, output=following.output, params=params, name=name)
