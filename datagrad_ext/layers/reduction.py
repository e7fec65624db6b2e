"""Sums and means over dimensions: y = Σ x, y = Σ x / n.

vjp  g in every place, divided by n for a mean      jvp  the reduction itself
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

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


def _register(function: Any, transpose: Any) -> None:
    layer = LinearMap(function.__name__.capitalize(), function, transpose, follows_layout=True)

    @function_rule(function, methods=(function.__name__,))
    def _(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Application | None:
        if dtype is not None:
            return None
        if dim is None:
            return Application(layer, inputs=(input,)) if not keepdim else None
        return Application(layer, inputs=(input,), host=(dim, keepdim))


_register(torch.sum, _spread)
_register(torch.mean, _spread_mean)
