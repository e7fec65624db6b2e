"""Euclidean norms over dimensions: y = √Σ x², and F.normalize.

    vjp  g x / y      jvp  Σ x t / y      curvature  Σ δ (t − x Σ x t / y²) / y

Where y is 0 the first derivative is 0 and the second NaN, as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import FLOAT32_ON_CUDA, Pairs, Parameterless, Tensors
from .registry import Application, expansion, function_rule


class Norm(Parameterless):
    """√Σ x² over the dimensions `dim` (None: all)."""

    curved = paired = True
    autocast = FLOAT32_ON_CUDA

    def __init__(self, dim: Any, keepdim: bool) -> None:
        self._dim, self._keepdim = dim, keepdim

    def apply(self, *inputs: Any) -> Tensor:
        return torch.linalg.vector_norm(inputs[0], 2, self._dim, self._keepdim)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        y = torch.linalg.vector_norm(inputs[0], 2, self._dim, True)
        return y if self._keepdim else self._squeezed(y), (inputs[0], y)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        x, y = saved
        return (x * (g.reshape(y.shape) * _inverse(y)),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        x, y = saved
        t = self._sum(x * tangents[0]) * _inverse(y)
        return t if self._keepdim else self._squeezed(t)

    def curvature(self, saved: Any, params: Tensors, pairs: Pairs, wanted: Sequence[bool]) -> Tensors:
        x, y = saved
        inverse = 1 / y
        terms = []
        for delta, (t,) in pairs:
            scale = delta.reshape(y.shape) * inverse
            terms.append(scale * t - x * (scale * inverse * inverse * self._sum(x * t)))
        return (sum(terms[1:], terms[0]),)

    def _sum(self, x: Tensor) -> Tensor:
        return x.sum(self._dim, keepdim=True)

    def _squeezed(self, y: Tensor) -> Tensor:
        dims = range(y.dim()) if self._dim is None else self._dim
        return y.squeeze(dims if isinstance(dims, int) else tuple(dims))


def _inverse(y: Tensor) -> Tensor:
    """1 / y, and 0 for 0."""
    return (1 / y).masked_fill(y == 0, 0)


def _rule(input: Any, order: Any, dim: Any, keepdim: bool) -> Application | None:
    dims = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
    if order != 2 or not all(isinstance(d, int) for d in dims):
        return None
    return Application(Norm(dim if dims else None, keepdim), inputs=(input,))


@function_rule(torch.norm, methods=("norm",))
def _norm(input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False) -> Application | None:
    return _rule(input, 2 if p in ("fro", None) else p, dim, keepdim)


@function_rule(torch.linalg.vector_norm)
def _vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False) -> Application | None:
    return _rule(x, ord, dim, keepdim)


@function_rule(torch.linalg.norm)
def _linalg_norm(A: Any, ord: Any = None, dim: Any = None, keepdim: bool = False) -> Application | None:
    return _rule(A, 2 if ord is None or (isinstance(dim, int) and ord == 2) else None, dim, keepdim)


@expansion(F.normalize)
def _normalize(input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Any:
    if p != 2 or out is not None:
        return NotImplemented
    return input / torch.linalg.vector_norm(input, 2, dim, True).clamp_min(eps)
