"""Runs of convolutions and rectifiers become one step each, where cuDNN can do both in one pass."""

from __future__ import annotations

import functools

import torch

from ..layers.activation import Rectifier
from ..layers.convolution import Convolution
from ..layers.convolution_chain import ConvolutionChain
from ..ops import is_native
from ..program import HostStep, Program, Step
from .readers import only_reader, readers_of


@functools.cache
def _has_plans() -> bool:
    """Whether fused convolutions may have plans in this process: cuDNN is built in, and there is a GPU."""
    return is_native("fused_convolution_forward", "cuda") and torch.cuda.is_available()


def collect_convolutions(program: Program) -> Program:
    """Every run of two-dimensional convolutions, each with the rectifier that alone reads it, as one ConvolutionChain.

    A run begins with a convolution and holds a rectifier; the last convolution may be without one.
    """
    if not _has_plans():
        return program
    readers = readers_of(program)
    steps: list[Step | HostStep | None] = list(program.steps)
    for i in range(len(steps)):
        run = _run_from(i, steps, readers)
        if len(run) > 1:
            for place in run:
                steps[place] = None
            steps[run[-1]] = _chain([program.steps[place] for place in run])  # type: ignore[misc]
    return program.with_steps([step for step in steps if step is not None])


def _run_from(i: int | None, steps: list[Step | HostStep | None], readers: dict[int, list[int]]) -> list[int]:
    """Places of the steps of the longest run that begins at step i: convolution, rectifier, convolution, …"""
    run: list[int] = []
    while i is not None:
        step = steps[i]
        if not isinstance(step, Step) or not (_is_rectifier(step) if len(run) % 2 else _is_convolution(step)):
            break
        run.append(i)
        i = only_reader(readers, step.output)
    return run


def _is_convolution(step: Step) -> bool:
    layer = step.layer
    return isinstance(layer, Convolution) and layer.dims == 2 and not layer.transposed


def _is_rectifier(step: Step) -> bool:
    return isinstance(step.layer, Rectifier) and step.layer.slope >= 0


def _chain(run: list[Step]) -> Step:
    layer = ConvolutionChain([step.layer for step in run], [len(step.params) for step in run])
    params = tuple([place for step in run for place in step.params])
    return Step(layer, run[0].inputs, run[-1].output, params, name=f"{run[0].name}…{run[-1].name}")
