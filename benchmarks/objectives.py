"""What a step minimises, and the step itself, written as a user writes it.

    s = primal(y, t)        the scalar that J = ds/dx differentiates (a sum over samples, so J is per sample)
    total = loss(s, y) + weight * penalty(J)          plain step: loss(s, y) alone

Every contestant runs `plain_step`, `penalty_step` or (torch.compile) `penalty_total` on these same rows.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Gradients = tuple[Tensor, ...]


def _cross_entropy(y: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(y, t, reduction="sum")


def _output_sum(y: Tensor, t: Tensor) -> Tensor:
    return y.sum()


def _sample_mean(s: Tensor, y: Tensor) -> Tensor:
    return s / y.shape[0]


def _absolute_mean(s: Tensor, y: Tensor) -> Tensor:
    return y.abs().mean()


def _l1(J: Tensor) -> Tensor:
    return J.abs().sum() / J.shape[0]


def _l2_squared(J: Tensor) -> Tensor:
    return J.square().sum() / J.shape[0]


def _eikonal(J: Tensor) -> Tensor:
    return (J.norm(dim=1) - 1).square().mean()


@dataclass(frozen=True)
class Objective:
    """A row: a formula for people, callables for the step. `penalty_only`: the penalty step has no loss."""

    formula: str
    primal: Callable[[Tensor, Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    penalty: Callable[[Tensor], Tensor]
    penalty_only: bool = False


CROSS_ENTROPY_L1 = Objective("CE + L1", _cross_entropy, _sample_mean, _l1)
CROSS_ENTROPY_L2 = Objective("CE + L2²", _cross_entropy, _sample_mean, _l2_squared)
R1 = Objective("R1, linear head", _output_sum, _sample_mean, _l2_squared, penalty_only=True)
EIKONAL = Objective("|f| + eikonal", _output_sum, _absolute_mean, _eikonal)


def gradients(total: Tensor, parameters: Sequence[Tensor]) -> Gradients:
    """Parameter gradients of the total by `backward`."""
    for p in parameters:
        p.grad = None
    total.backward(inputs=list(parameters))
    return tuple([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])


def plain_step(
    model: nn.Module, parameters: Sequence[Tensor], objective: Objective, x: Tensor, t: Tensor
) -> Gradients:
    """Parameter gradients of the loss alone."""
    y = model(x)
    return gradients(objective.loss(objective.primal(y, t), y), parameters)


def penalty_step(
    model: nn.Module,
    parameters: Sequence[Tensor],
    objective: Objective,
    weight: float,
    x: Tensor,
    t: Tensor,
    data_gradient_scope: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Gradients:
    """Parameter gradients of loss + weight * penalty by ordinary autograd code."""
    x = x.detach().requires_grad_()
    y = model(x)
    s = objective.primal(y, t)
    with data_gradient_scope():
        (J,) = torch.autograd.grad(s, x, create_graph=True)
    total = weight * objective.penalty(J)
    if not objective.penalty_only:
        total = total + objective.loss(s, y)
    return gradients(total, parameters)


def penalty_total(
    model: nn.Module, objective: Objective, weight: float, parameters: dict[str, Any], x: Tensor, t: Tensor
) -> Tensor:
    """loss + weight * penalty as a function of the parameters, with J from torch.func.grad."""

    def primal(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y = torch.func.functional_call(model, parameters, (x,))
        s = objective.primal(y, t)
        return s, (s, y)

    J, (s, y) = torch.func.grad(primal, has_aux=True)(x)
    total = weight * objective.penalty(J)
    return total if objective.penalty_only else total + objective.loss(s, y)
