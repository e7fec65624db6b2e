"""Runs of convolutions and rectifiers become one step each, where cuDNN can do both in one pass."""

from __future__ import annotations

import functools

import torch

from ..layers.activation import Rectifier
from ..layers.convolution import Convolution
from ..layers.convolution_chain import ConvolutionChain
from ..ops import is_native
from ..program import Program, Step
from .joining import join_runs


@functools.cache
def _has_plans() -> bool:
    """Whether fused convolutions may have plans in this process: cuDNN is built in, and there is a GPU."""
    return is_native("fused_convolution_forward", "cuda") and torch.cuda.is_available()


def collect_convolutions(program: Program) -> Program:
    """Every run of two-dimensional convolutions, each with the rectifier that alone reads it, as one ConvolutionChain.

    A run begins with a convolution and holds a rectifier; the last convolution may be without one.
    """
    return join_runs(program, _fits, _chain) if _has_plans() else program


def _fits(n: int, step: Step) -> bool:
    return _is_rectifier(step) if n % 2 else _is_convolution(step)


def _is_convolution(step: Step) -> bool:
    layer = step.layer
    return isinstance(layer, Convolution) and layer.dims == 2 and not layer.transposed


def _is_rectifier(step: Step) -> bool:
    return isinstance(step.layer, Rectifier) and step.layer.slope >= 0


def _chain(run: list[Step]) -> Step:
    layer = ConvolutionChain([step.layer for step in run], [len(step.params) for step in run])
    params = tuple([place for step in run for place in step.params])
    return Step(layer, run[0].inputs, run[-1].output, params, name=f"{run[0].name}…{run[-1].name}")
