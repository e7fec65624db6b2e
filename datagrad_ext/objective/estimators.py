"""How the gradient of a penalty by the weights is computed.

With y = ∂R/∂J held constant, ∂R(J)/∂w = y · ∇ₓ(∂L/∂w) (arXiv 1601.07213): the derivative of ∂L/∂w in the direction y.

    Exact               autograd through J: double backprop
    FiniteDifference    [∂L/∂w(x + φy) − ∂L/∂w(x)] / φ               error O(φ)
    CentralDifference   [∂L/∂w(x + φy) − ∂L/∂w(x − φy)] / 2φ         error O(φ²)

The differences need no second-order graph, so they work with any op. The gradient of what they return is the estimate;
its value is λ0 L0 + λ R(J) + O(φ). With R a norm and L = L0 it is a L(x) + b L(x + φy), b = λ/φ, a = λ0 − b. At
adversarial sizes of φ that is a method of its own with a finite radius, not an approximation.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .passes import Pass
from .problem import Active, Problem, Source
from .result import Result, TermResult


class AscentWarning(UserWarning):
    """The clean loss has a negative weight, a = λ0 − λ/φ."""


@dataclass(frozen=True)
class Exact:
    """Double backprop: the gradient of the penalty to rounding. Any loss, penalty and model that autograd can do."""

    repeats: ClassVar[bool] = False

    def __call__(self, problem: Problem, first: Pass) -> Result:
        """The objective, with J in autograd's graph."""
        parts, loss = [], problem.main_mean(first)
        if loss is not None:
            parts.append(problem.main_weight * loss)
        found: list[TermResult] = []
        for active in problem.terms:
            gradients = problem.gradients(active, first, create_graph=True)
            value = _added([active.term.values(J, problem.target).mean() for J in gradients])
            parts.append(active.weight * value)
            found.append(active.result(gradients, value))
        return problem.result(parts, loss, found)


@dataclass(frozen=True)
class _Difference:
    """What both difference quotients share: the direction y, the size φ, and losses at shifted inputs."""

    step: float
    relative: bool = field(default=False, kw_only=True)

    repeats: ClassVar[bool] = True
    stencil: ClassVar[tuple[tuple[int, float], ...]]
    """(shift in units of φy, coefficient in units of 1/φ)."""

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise ValueError(f"{type(self).__name__}: step must be positive, got {self.step}")

    def __call__(self, problem: Problem, first: Pass) -> Result:
        """The objective's value, with the estimate as its gradient."""
        loss = problem.main_mean(first)
        clean: defaultdict[tuple[Source | None, int], float] = defaultdict(float)
        if loss is not None:
            clean[problem.main, 0] = problem.main_weight
        parts: list[Tensor] = []
        found: list[TermResult] = []
        for active in problem.terms:
            gradients = problem.gradients(active, first, create_graph=False)
            values = []
            for k, J in enumerate(gradients):
                value, y = _seeded(active, J, problem.target)
                phi = self._phi(y, first.at[active.key].detach())
                for shift, coefficient in self.stencil:
                    b = active.weight * coefficient / phi * (problem.passes.samples / len(J))
                    if shift == 0:
                        clean[active.source, k] += b
                    else:
                        shifted = problem.passes.again(active.key, shift * phi * y)
                        parts.append(b * problem.mean(active.source, shifted, k))
                # Zero if R is a norm, by Euler's theorem; for other R this constant makes the value that of R.
                parts.append(active.weight * (value - (y * J).sum() / len(J)))
                values.append(value)
            found.append(active.result(gradients, _added(values)))
        parts += [a * problem.first_mean(source, first, k) for (source, k), a in clean.items() if source and a]
        if clean.get((problem.main, 0), 0.0) < 0 and problem.main is not None:
            _warn_of_ascent()
        return problem.result(parts, loss, found)

    def _phi(self, y: Tensor, x: Tensor) -> float:
        if not self.relative:
            return self.step
        length = torch.linalg.vector_norm(y).item()
        size = torch.linalg.vector_norm(x).item()
        return self.step * size / length if length and size else self.step


class FiniteDifference(_Difference):
    """The paper's algorithm, first order in φ: passes at x and at x + φ y, y = ∂R/∂J held constant.

    The passes have the same dropout mask and start from the same buffers, and running statistics are updated once.

    Args:
        step: φ. For a penalty's gradient in float32 take 1e-3 to 1e-4; docs/estimators.md has the errors.
        relative: φ is instead such that ‖φ y‖₂ = step · ‖x‖₂, both norms over the whole batch.

    Raises:
        ValueError: a step that is not positive.

    Warns:
        AscentWarning: λ/φ > λ0, so that the clean loss has a negative weight.
    """

    stencil = ((0, -1.0), (1, 1.0))


class CentralDifference(_Difference):
    """Second order in φ: passes at x, x + φ y and x − φ y; otherwise as `FiniteDifference`.

    For a penalty's gradient in float32 take a step of 1e-2 to 1e-3.
    """

    stencil = ((1, 0.5), (-1, -0.5))


Estimator = Exact | FiniteDifference | CentralDifference


def _seeded(active: Active, J: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """mean_n R(J_n) and y = ∂R/∂J."""
    J = J.detach().requires_grad_()
    values = active.term.values(J, target)
    if not values.requires_grad:
        return values.mean(), torch.zeros_like(J)
    (y,) = torch.autograd.grad(values.sum(), J)
    return values.detach().mean(), y


def _added(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])


def _warn_of_ascent() -> None:
    warnings.warn(
        "λ/φ is larger than the weight of the loss, so the clean loss has a negative weight and is ascended. With a "
        "small φ this is part of the estimate of ∂R/∂w; at an adversarial size it is rarely meant",
        AscentWarning,
        stacklevel=7,  # the caller of the objective
    )
