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

from ..network import refuse_sharded
from .passes import Pass
from .problem import Active, Problem, Source, added, times
from .result import Result, TermResult


class AscentWarning(UserWarning):
    """The clean loss has a negative weight, a = λ0 − λ/φ."""


@dataclass(frozen=True)
class Exact:
    """Double backprop: the gradient of the penalty to rounding. Any loss, penalty and model that autograd can do.

    Raises:
        RuntimeError: FSDP manages the model, where PyTorch's double backward goes wrong without a word.
    """

    repeats: ClassVar[bool] = False

    def __call__(self, problem: Problem, first: Pass) -> Result:
        """The objective, with J in autograd's graph."""
        if problem.terms:
            refuse_sharded(problem.passes.model)
        loss = problem.main_mean(first)
        parts = [] if loss is None else [times(problem.main_weight, loss)]
        found: list[TermResult] = []
        for active in problem.terms:
            gradients = problem.gradients(active, first, create_graph=True)
            value = added([active.term.values(J, problem.target).mean() for J in gradients])
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
        mix = _Mix(problem, first)
        found = [self._estimated(active, mix) for active in problem.terms]
        return mix.result(found)

    def _estimated(self, active: Active, mix: _Mix) -> TermResult:
        """Put the quotient of a term into the mix."""
        gradients = mix.problem.gradients(active, mix.first, create_graph=False)
        values = []
        for k, J in enumerate(gradients):
            value, y = _seeded(active, J, mix.problem.target)
            phi = self._phi(y, mix.first.at[active.key].detach())
            rows = max(len(J), 1)
            weight = active.weight / phi * (mix.problem.passes.samples / rows)
            for shift, coefficient in self.stencil:
                mix.add(active, k, weight * coefficient, None if shift == 0 else shift * phi * y)
            # Zero if R is a norm, by Euler's theorem; for other R this constant makes the value that of R.
            mix.parts.append(active.weight * (value - (y * J).sum() / rows))
            values.append(value)
        return active.result(gradients, added(values))

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


class _Mix:
    """Σ of losses at x, by their coefficients, and of losses at shifted inputs."""

    def __init__(self, problem: Problem, first: Pass) -> None:
        self.problem, self.first = problem, first
        self.loss = problem.main_mean(first)
        self.parts: list[Tensor] = []
        self._clean: defaultdict[tuple[Source, int], float] = defaultdict(float)
        if problem.main is not None:
            self._clean[problem.main, 0] = problem.main_weight

    def add(self, active: Active, k: int, coefficient: float, shift: Tensor | None) -> None:
        """`coefficient` times the k-th loss of the term at x (None), or with its input shifted."""
        if shift is None:
            self._clean[active.source, k] += coefficient
        else:
            moved = self.problem.passes.again(active.key, shift)
            self.parts.append(times(coefficient, self.problem.mean(active.source, moved, k)))

    def result(self, terms: list[TermResult]) -> Result:
        """The sum, and a warning if the objective's own loss is ascended."""
        for (source, k), a in self._clean.items():
            if a < 0 and source == self.problem.main:
                _warn_of_ascent()
            if a:
                self.parts.append(times(a, self.problem.first_means(source, self.first)[k]))
        return self.problem.result(self.parts, self.loss, terms)


Estimator = Exact | FiniteDifference | CentralDifference


def _seeded(active: Active, J: Tensor, target: Any) -> tuple[Tensor, Tensor]:
    """mean_n R(J_n) and y = ∂R/∂J."""
    J = J.detach().requires_grad_()
    values = active.term.values(J, target)
    if not values.requires_grad:
        return values.mean(), torch.zeros_like(J)
    (y,) = torch.autograd.grad(values.sum(), J)
    return values.detach().mean(), y


def _warn_of_ascent() -> None:
    warnings.warn(
        "λ/φ is larger than the weight of the loss, so the clean loss has a negative weight and is ascended. With a "
        "small φ this is part of the estimate of ∂R/∂w; at an adversarial size it is rarely meant",
        AscentWarning,
        stacklevel=8,  # the caller of the objective
    )
