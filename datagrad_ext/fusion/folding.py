"""A norm by running statistics becomes a part of the linear layer or convolution before it."""

from __future__ import annotations

from dataclasses import replace

from ..layers.convolution import Convolution
from ..layers.folded import FoldedNorm
from ..layers.linear import Linear
from ..layers.running_statistics import RunningNorm
from ..program import Program, Step
from .joining import join_pairs


def fold_norms(program: Program) -> Program:
    """Fold a batch norm by running statistics into the layer with a weight whose value only it reads."""
    return join_pairs(program, _join)


def _join(step: Step, following: Step) -> Step | None:
    norm = following.layer
    if not isinstance(step.layer, (Linear, Convolution)) or not isinstance(norm, RunningNorm) or not norm.folds:
        return None
    params, name = (*step.params, *following.params), f"{step.name} {following.name}"
    layer = FoldedNorm(step.layer, len(step.params), norm, len(params), len(following.host))
    return replace(following, layer=layer, inputs=step.inputs, params=params, name=name)
