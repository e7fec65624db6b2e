"""DataGrad: a loss and its terms, called with a model and a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .estimators import Estimator, Exact
from .losses import Loss, check_loss
from .native import Native
from .passes import Passes
from .problem import Active, Problem, Source
from .result import Result, evaluated
from .term import Term


@dataclass(frozen=True)
class _Now:
    """The objective at the weights of one step."""

    given: tuple[Any, ...]
    weights: list[float]
    main: Source | None
    active: list[Active]
    native: Native


class DataGrad:
    """λ0 mean_n L0_n + Σ_i λi mean_n Ri(J_in): `objective(model, x, target).total.backward()`.

    The data gradient J_n is sample n's own: ∂L_n/∂x_n, not the 1/N of it that the gradient of a batch mean has.
    The model is any callable; an accelerated one is fast by itself, and with a loss and penalties that `heads` and
    `seeds` know all of the step is one autograd Function (`native`). Under torch.no_grad() the figures come without a
    graph.

    Args:
        loss: L0, a callable (output, target) that returns the losses of the samples (N, ...) or their mean; None for
            penalties alone. Also the loss of every term that has none of its own.
        terms: a `Term`, or several.
        estimator: `Exact()`, `FiniteDifference(step)` or `CentralDifference(step)`.
        loss_weight: λ0.

    Attributes:
        step: the step that schedules see. Every call with gradients on adds one; set it to resume.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a loss with reduction='sum', or a term without a loss where there is no L0.
    """

    def __init__(
        self,
        loss: Loss | None,
        terms: Term | Sequence[Term] = (),
        estimator: Estimator | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        self.loss, self.loss_weight = loss, loss_weight
        self.terms = (terms,) if isinstance(terms, Term) else tuple(terms)
        self.estimator = Exact() if estimator is None else estimator
        self.step = 0
        self._latest: _Now | None = None
        if not isinstance(loss_weight, (int, float)):
            raise TypeError(
                f"DataGrad: loss_weight must be a number, got {type(loss_weight).__name__}. For a weight that is "
                "learned, multiply result.total, or put it into the loss"
            )
        if loss is not None:
            check_loss(loss, "DataGrad: loss")
        for term in self.terms:
            if not isinstance(term, Term):
                raise TypeError(f"DataGrad: terms must be Term objects, got {type(term).__name__}")
            if term.loss is None and loss is None:
                raise ValueError("DataGrad: a term without a loss of its own needs the objective's loss, which is None")
        if not isinstance(self.estimator, Estimator):
            raise TypeError(
                "DataGrad: estimator must be Exact(), FiniteDifference(step) or CentralDifference(step), "
                f"got {type(self.estimator).__name__}"
            )

    def __call__(self, model: Callable[..., Any], x: Tensor | Sequence[Tensor], target: Any = None) -> Result:
        """The objective at one batch.

        Args:
            model: called as model(x), or model(*x) for a sequence of inputs.
            x: (N, ...), floating point where a term takes the gradient with respect to it.
            target: handed to the losses as it is.
        """
        result = evaluated(lambda: self._evaluate(model, x, target))
        self.step += torch.is_grad_enabled()
        return result

    def _evaluate(self, model: Any, x: Any, target: Any) -> Result:
        now = self._now()
        result = now.native.evaluate(model, x, target) if type(self.estimator) is Exact else None
        if result is None:
            result = self._ordinary(model, x, target, now.main, now.active)
        if len(now.active) == len(self.terms):
            return result
        found = iter(result.terms)
        return replace(result, terms=tuple(next(found) if weight else None for weight in now.weights))

    def _now(self) -> _Now:
        """The objective at this step: as it was at the last call, unless a schedule or the user changed it."""
        weights = [term.weight_at(self.step) for term in self.terms]
        given = (self.loss, self.loss_weight, self.terms)
        if self._latest is None or self._latest.weights != weights or self._latest.given != given:
            self._latest = self._made(given, weights)
        return self._latest

    def _made(self, given: tuple[Any, ...], weights: list[float]) -> _Now:
        main: Source | None = None if self.loss is None else (self.loss, None)
        active = [self._active(term, weight) for term, weight in zip(self.terms, weights, strict=True) if weight]
        return _Now(given, weights, main, active, Native(main, self.loss_weight, active))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": None}

    def _ordinary(self, model: Any, x: Any, target: Any, main: Source | None, active: list[Active]) -> Result:
        """The objective in ordinary autograd code."""
        indices = sorted({term.key for term in active if isinstance(term.key, int)})
        names = sorted({name for term in active for name in term.names})
        passes = Passes(model, x, indices, names)
        problem = Problem(passes, target, main, self.loss_weight, active)
        first = passes.first(repeatable=self.estimator.repeats and bool(active))
        return self.estimator(problem, first)

    def _active(self, term: Term, weight: float) -> Active:
        loss = self.loss if term.loss is None else term.loss
        assert loss is not None
        return Active(term, weight, (loss, term.output))

    def __repr__(self) -> str:
        return f"DataGrad({self.loss!r}, {list(self.terms)!r}, {self.estimator!r}, loss_weight={self.loss_weight})"
