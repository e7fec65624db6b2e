"""What the native path makes of an objective at one kind of batch, and its gradients as differentiable code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layers.base import gradients
from ..ops.heads import Head
from ..ops.seeds import Seed
from ..program import Program
from ..reference import aliases
from .estimators import Exact
from .passes import Passes
from .problem import Active, Problem, Source


@dataclass(slots=True)
class Heads:
    """The losses as heads and the penalties as seeds; good for every network and batch of this kind."""

    loss: Head
    """The loss of the terms."""
    seeds: list[Seed]
    main: Head | None
    """The loss of the objective itself; `loss` if it is the terms' loss, None if there is none or it is not known."""


@dataclass(slots=True)
class Step:
    """A network, the objective, and its heads: what the sweeps of a batch run on."""

    program: Program
    warned: set[str]
    heads: Heads
    main: Source | None
    main_weight: float
    terms: Sequence[Active]

    @property
    def outside(self) -> bool:
        """Whether the objective's own loss is left to ordinary code, which needs the network's output."""
        return self.main is not None and self.heads.main is None


@dataclass(slots=True)
class Found:
    """What a forward found besides the total: the mean of the objective's own loss, each mean_n R, and J."""

    mean: Tensor | None = None
    values: Sequence[Tensor] = ()
    J: Tensor | None = None


def differentiable(
    step: Step, cotangents: Sequence[Any], target: Any, saved: list[Any], x: Tensor, params: Sequence[Tensor]
) -> Sequence[Any]:
    """The gradients of the Function's results with respect to x and the parameters as ordinary differentiable code."""
    with torch.enable_grad():
        theta = aliases(params)  # gradients stop at names of their own
        passes = Passes(lambda x: step.program.reference(saved, [x], theta)[0], x.view_as(x), [0], [])
        main = None if step.outside else step.main
        first = passes.first(repeatable=False)
        problem = Problem(passes, target, main, step.main_weight, step.terms)
        results = [Exact()(problem, first).total, *[first.value(None)] * step.outside]
        return gradients(zip(results, cotangents, strict=True), [*passes.x, *theta], create_graph=True)
