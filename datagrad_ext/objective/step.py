"""One evaluation of an objective on the native path, and its gradients as ordinary differentiable code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..autograd import aliases
from ..layers.base import gradients
from ..ops.heads import Head
from ..ops.seeds import Seed
from ..program import Program
from .estimators import Exact
from .passes import Passes
from .problem import Active, Problem, Source


@dataclass(slots=True)
class Step:
    """The network, the losses as heads, the penalties as seeds, and what the forward found."""

    program: Program
    warned: set[str]
    head: Head
    """The loss of the terms."""
    seeds: list[Seed]
    main: Source | None
    main_head: Head | None
    """The loss of the objective itself; `head` if it is the terms' loss, None if there is none or it is not known."""
    main_weight: float
    terms: list[Active]
    mean: Tensor | None = None
    J: Tensor | None = None
    values: Sequence[Tensor] = field(default_factory=list)

    @property
    def outside(self) -> bool:
        """Whether the objective's own loss is left to ordinary code, which needs the network's output."""
        return self.main is not None and self.main_head is None

    def forget(self) -> None:
        """Let go of what the forward found: the caller has it."""
        self.mean = self.J = None
        self.values = ()


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
