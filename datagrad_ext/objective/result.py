"""What an objective returns: the scalar to minimise, and detached figures for logging."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..penalties import l2


@dataclass(eq=False, slots=True)
class TermResult:
    """One penalty at one batch; everything is detached."""

    weight: float
    """λ at this step, lazy regularisation's factor included."""
    value: Tensor
    """mean_n R(J_n), a scalar, not yet multiplied by the weight."""
    data_gradient: Tensor | None
    """J (N, ...), row n the gradient of sample n's own loss; (K, N, ...) if `stacked`: the loss is a tuple of K. None
    for a penalty that is not one on a data gradient (some presets)."""
    stacked: bool = False

    @property
    def norms(self) -> Tensor | None:
        """‖J_n‖₂ of every sample, (N,) or (K, N)."""
        J = self.data_gradient
        if J is None:
            return None
        return l2(J.flatten(0, 1)).view(J.shape[:2]) if self.stacked else l2(J)


@dataclass(eq=False, slots=True)
class Result:
    """An objective at one batch."""

    total: Tensor
    """The scalar to minimise: call `.backward()`."""
    loss: Tensor | None
    """mean_n L0_n, detached; None for an objective that is a penalty alone."""
    terms: tuple[TermResult | None, ...]
    """A result for each term, None for one that its schedule left out at this step."""

    def scalars(self) -> dict[str, float]:
        """Figures to log: total, loss, and for each term its value and the mean norm of its data gradient."""
        found = {"total": self.total.item()}
        if self.loss is not None:
            found["loss"] = self.loss.item()
        for k, term in enumerate(self.terms):
            if term is not None:
                found[f"penalty_{k}"] = term.value.item()
                if (norms := term.norms) is not None:
                    found[f"norm_{k}"] = norms.mean().item()
        return found


_graph = ContextVar("whether the result of the evaluation that is running has a graph", default=True)


def without_graph() -> bool:
    """Whether the graph of what is being evaluated is thrown away, so that no backward can follow."""
    return not _graph.get()


def evaluated(function: Callable[[], Result]) -> Result:
    """What `function` returns, with gradients on inside; without its graph if they are off outside."""
    graph = torch.is_grad_enabled()
    if graph and not torch.is_inference_mode_enabled():
        return function()
    token = _graph.set(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            result = function()
    finally:
        _graph.reset(token)
    return result if graph else replace(result, total=result.total.detach())
