"""Softmax and its logarithm along one dimension; both save y.

    Softmax      vjp = jvp = P t with P t = y (t − Σ y t)
                 ⟨δ, P t⟩ = Σ y δ t − Σ y δ Σ y t, so curvature  P (δ t − δ Σ y t − t Σ y δ)
    LogSoftmax   vjp  g − p Σ g      jvp  t − Σ p t      curvature  −Σ δ P t      with p = eʸ, and P from p

All sums are along the dimension. `safe` is the softmax of attention: 0, not NaN, where every entry is −∞.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import FLOAT32_ON_CUDA, Pairs, Parameterless, Tensors
from .registry import Application, expansion, function_rule, module_rule

_aten = torch.ops.aten


def safe_softmax(scores: Any, dim: int) -> Any:
    """Softmax along `dim`; 0 where every entry is −∞."""
    return torch.ops.aten._safe_softmax.default(scores, dim)


class Softmax(Parameterless):
    """exp(x) / Σ exp(x)."""

    curved = paired = True

    def __init__(self, dim: int, safe: bool = False) -> None:
        self._dim, self._function = dim, safe_softmax if safe else torch.softmax
        self.autocast = "same" if safe else FLOAT32_ON_CUDA

    def apply(self, *inputs: Any) -> Tensor:
        return self._function(inputs[0], self._dim)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        y = self.apply(*inputs)
        return y, (y,)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (_project(saved[0], g, self._dim),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return _project(saved[0], tangents[0], self._dim)

    def curvature(self, saved: Any, params: Tensors, pairs: Pairs, wanted: Sequence[bool]) -> Tensors:
        (y,) = saved
        terms = [delta * (t - self._mean(y, t)) - t * self._mean(y, delta) for delta, (t,) in pairs]
        return (_project(y, sum(terms[1:], terms[0]), self._dim),)

    def _mean(self, y: Tensor, t: Tensor) -> Tensor:
        return (y * t).sum(self._dim, keepdim=True)


class LogSoftmax(Parameterless):
    """x − log Σ exp(x)."""

    curved = paired = True
    autocast = FLOAT32_ON_CUDA

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def apply(self, *inputs: Any) -> Tensor:
        return torch.log_softmax(inputs[0], self._dim)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        y = self.apply(*inputs)
        return y, (y,)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (_aten._log_softmax_backward_data.default(g, saved[0], self._dim, g.dtype),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return tangents[0] - self._sum(saved[0].exp() * tangents[0])

    def curvature(self, saved: Any, params: Tensors, pairs: Pairs, wanted: Sequence[bool]) -> Tensors:
        terms = [self._sum(delta) * t for delta, (t,) in pairs]
        return (-_project(saved[0].exp(), sum(terms[1:], terms[0]), self._dim),)

    def _sum(self, g: Tensor) -> Tensor:
        return g.sum(self._dim, keepdim=True)


def _project(y: Tensor, t: Tensor, dim: int) -> Tensor:
    """y (t − Σ y t)."""
    return _aten._softmax_backward_data.default(t, y, dim, t.dtype)


@expansion(torch.softmax, F.softmax)
def _softmax_in(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    """Softmax in a wider dtype."""
    return torch.softmax(input.to(dtype), dim) if dtype in (torch.float32, torch.float64) else NotImplemented


@module_rule(nn.Softmax, config=("dim",))
def _softmax_module(module: nn.Softmax) -> Application | None:
    return _softmax(None, module.dim)


@function_rule(torch.softmax, F.softmax, methods=("softmax",))
def _softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Application | None:
    return Application(Softmax(dim), inputs=(input,)) if isinstance(dim, int) and dtype is None else None


@module_rule(nn.LogSoftmax, config=("dim",))
def _log_softmax_module(module: nn.LogSoftmax) -> Application | None:
    return _log_softmax(None, module.dim)


@function_rule(torch.log_softmax, F.log_softmax, methods=("log_softmax",))
def _log_softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Application | None:
    return Application(LogSoftmax(dim), inputs=(input,)) if isinstance(dim, int) and dtype is None else None


@function_rule(safe_softmax)
def _safe(input: Any, dim: int) -> Application:
    return Application(Softmax(dim, safe=True), inputs=(input,))
