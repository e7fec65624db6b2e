"""Sums and means over dimensions: y = Σ x, y = Σ x / n.

    vjp  g in every place, divided by n for a mean      jvp  the reduction itself

Maxima and minima along one dimension, with their places: (y, i) = max x.

    vjp  g at the places, zero elsewhere                jvp  t at the places

Those over all dimensions share a cotangent between equal elements, and have no rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import FLOAT32_ON_CUDA, Parameterless, Tensors
from .linear_map import LinearMap
from .registry import Application, function_rule


def _spread(g: Tensor, shape: torch.Size, dim: Any = None, keepdim: bool = False) -> Tensor:
    """g along the dimensions that were summed."""
    if not keepdim:
        for d in sorted(_dims(len(shape), dim)):
            g = g.unsqueeze(d)
    return g.expand(shape)


def _spread_mean(g: Tensor, shape: torch.Size, dim: Any = None, keepdim: bool = False) -> Tensor:
    return _spread(g / math.prod(shape[d] for d in _dims(len(shape), dim)), shape, dim, keepdim)


def _dims(n: int, dim: Any) -> list[int]:
    """The dimensions that `dim` names; none is all."""
    if dim is None or dim == () or dim == []:
        return list(range(n))
    return [d % n for d in ([dim] if isinstance(dim, int) else dim) if n]


class Extremum(Parameterless):
    """torch.max or torch.min along one dimension: (values, places)."""

    autocast = "same"

    def __init__(self, function: Any, dim: int, keepdim: bool) -> None:
        self._function, self._dim, self._keepdim = function, dim, keepdim

    @property
    def name(self) -> str:
        return self._function.__name__.capitalize()

    def apply(self, *inputs: Any) -> Tensors:
        return tuple(self._function(inputs[0], self._dim, self._keepdim))

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensors, tuple]:
        y, places = self.apply(*inputs)
        return (y, places), (places if self._keepdim else places.unsqueeze(self._dim), inputs[0].shape)

    def vjp(self, saved: Any, params: Tensors, g: Any, wanted: Sequence[bool]) -> Tensors:
        places, shape = saved
        y_bar = g[0] if self._keepdim else g[0].unsqueeze(self._dim)
        return (y_bar.new_zeros(shape).scatter_(self._dim, places, y_bar),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensors:
        t = tangents[0].gather(self._dim, saved[0])
        return (t if self._keepdim else t.squeeze(self._dim), None)


def _register_extremum(function: Any) -> None:
    @function_rule(function, methods=(function.__name__,))
    def _(input: Any, dim: Any = None, keepdim: bool = False) -> Application | None:
        return Application(Extremum(function, dim, keepdim), inputs=(input,)) if isinstance(dim, int) else None


def _register(function: Any, transpose: Any, autocast: str | Mapping[str, str]) -> None:
    layer = LinearMap(function.__name__.capitalize(), function, transpose, follows_layout=True, autocast=autocast)

    @function_rule(function, methods=(function.__name__,))
    def _(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Application | None:
        if dtype is not None:
            return None
        if dim is None:
            return Application(layer, inputs=(input,)) if not keepdim else None
        return Application(layer, inputs=(input,), host=(dim, keepdim))


_register_extremum(torch.max)
_register_extremum(torch.min)
_register(torch.sum, _spread, FLOAT32_ON_CUDA)
_register(torch.mean, _spread_mean, "same")
