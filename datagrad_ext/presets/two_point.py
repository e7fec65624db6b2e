"""Objectives that read the model at x and at x + r, both passes from the same dropout mask and buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..network import refuse_sharded
from ..objective.losses import Loss, check_loss, each
from ..objective.passes import Passes, State
from ..objective.result import Result, TermResult, evaluated


class Batch:
    """A batch and the first pass over it: `output`, `losses` (N,), and what two-point objectives ask of them."""

    def __init__(
        self, model: Callable[..., Any], x: Tensor, target: Any, loss: Loss, differentiable: bool = True
    ) -> None:
        self.model, self.target, self.loss = model, target, loss
        self._passes = Passes(model, x, [0] if differentiable else [], [])
        self.x = self._passes.x[0]
        self.output = self._passes.first(repeatable=True).output
        self.losses = self.losses_of(self.output)

    def losses_of(self, output: Any) -> Tensor:
        """The loss of each sample (N,) for an output of the model."""
        return each(self.loss, output, self.target, len(self.x))

    def data_gradient(self, create_graph: bool = False) -> Tensor:
        """J (N, ...) at x. With create_graph a RuntimeError for a model that FSDP manages: `Exact` says why."""
        if create_graph:
            refuse_sharded(self.model)
        return torch.autograd.grad(self.losses.sum(), self.x, retain_graph=True, create_graph=create_graph)[0]

    def output_at(self, r: Tensor) -> Any:
        """The model's output at x + r."""
        return self._passes.again(0, r).output

    def data_gradient_at(self, r: Tensor) -> Tensor:
        """J at x + r, in autograd's graph; errors as for `data_gradient`."""
        refuse_sharded(self.model)
        shifted = self._passes.again(0, r, differentiable=True)
        total = self.losses_of(shifted.output).sum()
        return torch.autograd.grad(total, shifted.at[0], create_graph=True)[0]

    def result(self, total: Tensor, weight: float, value: Tensor, J: Tensor | None = None) -> Result:
        """The total, with one term for logging."""
        term = TermResult(weight, value.detach(), None if J is None else J.detach())
        return Result(total, self.losses.detach().mean(), (term,))


class TwoPoint:
    """An objective (model, x, target) -> Result made of a function of the batch and the step.

    `differentiable` says whether the function asks for the data gradient at x.

    Attributes:
        step: what schedules see. Every call with gradients on adds one; set it to resume.
    """

    def __init__(self, evaluate: Callable[[Batch, int], Result], loss: Loss, differentiable: bool = True) -> None:
        check_loss(loss, "loss")
        self.evaluate, self.loss, self.differentiable = evaluate, loss, differentiable
        self.step = 0

    def __call__(self, model: Callable[..., Any], x: Tensor, target: Any = None) -> Result:
        """The objective at one batch: x (N, ...), target as the loss takes it."""
        result = evaluated(lambda: self.evaluate(Batch(model, x, target, self.loss, self.differentiable), self.step))
        self.step += torch.is_grad_enabled()
        return result


def output_aside(model: Callable[..., Any], x: Tensor) -> Any:
    """model(x) as the next pass will see it, but leaving no trace: no random number drawn, no buffer changed."""
    with State.of(model, x.device).back():
        return model(x)
