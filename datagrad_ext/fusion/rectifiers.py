"""A rectifier becomes a part of the normalisation or sum before it."""

from __future__ import annotations

from dataclasses import replace

from ..layers.activation import Rectifier
from ..program import Program, Step
from .joining import join_pairs


def take_in_rectifiers(program: Program) -> Program:
    """Let a layer `with_rectifier` apply the ReLU or LeakyReLU that alone reads its value.

    A normalisation gates what its own passes read and write. A sum, the end of a residual block, is one pass with it.
    """
    return join_pairs(program, _join)


def _join(step: Step, following: Step) -> Step | None:
    if following.params or not isinstance(following.layer, Rectifier) or not hasattr(step.layer, "with_rectifier"):
        return None
    layer = step.layer.with_rectifier(following.layer)
    if layer is None:
        return None
    return replace(step, layer=layer, output=following.output, name=f"{step.name} {following.name}")
