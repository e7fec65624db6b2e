"""Matmul: y = a b of two values, with the shapes of torch.matmul (vectors, leading dimensions that broadcast).

    vjp  (g bᵀ, aᵀ g)      jvp  t_a b + a t_b      curvature  (δ t_bᵀ, t_aᵀ δ)

The product of a value with a weight matrix through F.linear is `linear.py`'s; this is for attention, for a weight
matrix in a plain `@`, and for F.linear with a weight that depends on the input (`transposed`: y = a bᵀ).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Pairs, Parameterless, Tensors, add, add_each, reduce_to
from .registry import Application, function_rule


class Matmul(Parameterless):
    """`function(a, b)` is a b, or a bᵀ if `transposed`."""

    curved = paired = True
    autocast = "low"

    def __init__(self, function: Callable[..., Tensor], transposed: bool = False) -> None:
        self._function, self._transposed = function, transposed

    def apply(self, *inputs: Any) -> Tensor:
        return self._function(*inputs)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        leading = _common_leading(*inputs)
        a, b = (_folded(x, leading) for x in inputs)
        return _unfolded(self.apply(a, b), leading), (a, b, leading)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        a, b, leading = saved
        return tuple(_unfolded(bar, leading) for bar in self._pull(saved, _folded(g, leading), a, b, wanted))

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        a, b, leading = saved
        first, second = (_folded(t, leading) for t in tangents)
        first = None if first is None else self.apply(first, b)
        return _unfolded(add(first, None if second is None else self.apply(a, second)), leading)

    def curvature(self, saved: Any, params: Tensors, pairs: Pairs, wanted: Sequence[bool]) -> Tensors:
        total: Tensors = (None, None)
        leading = saved[2]
        for record in pairs:
            delta, first, second = (_folded(x, leading) for x in (record[0], *record[1]))
            total = add_each(total, self._pull(saved, delta, first, second, wanted))
        return tuple(_unfolded(bar, leading) for bar in total)

    def _pull(self, saved: Any, g: Tensor, a: Any, b: Any, wanted: Sequence[bool]) -> Tensors:
        """(g bᵀ, aᵀ g), of the shapes of what was multiplied; None for None."""
        shapes = [x.shape for x in saved[:2]]
        transposed = self._transposed and len(shapes[1]) > 1
        g = _matrix(g, len(shapes[0]) == 1, len(shapes[1]) == 1)
        a_bar = b_bar = None
        if wanted[0] and b is not None:
            b = b.unsqueeze(-1) if b.dim() == 1 else b
            a_bar = reduce_to(torch.matmul(g, b if transposed else b.mT), _as_matrix(shapes[0], 0))
            a_bar = a_bar.reshape(shapes[0])
        if wanted[1] and a is not None:
            b_bar = _gram(a.unsqueeze(0) if a.dim() == 1 else a, g, len(shapes[1]))
            b_bar = b_bar.mT if transposed else b_bar
            b_bar = reduce_to(b_bar, _as_matrix(shapes[1], 1)).reshape(shapes[1])
        return a_bar, b_bar


def _common_leading(a: Tensor, b: Tensor) -> torch.Size | None:
    """The leading dimensions of two stacks of matrices, if they are several and the same."""
    return a.shape[:-2] if a.dim() > 3 and a.shape[:-2] == b.shape[:-2] else None


def _folded(x: Any, leading: torch.Size | None) -> Any:
    """The leading dimensions as one, so that a copy that this takes is made once and not at every product."""
    return x if leading is None or x is None else x.flatten(0, -3)


def _unfolded(x: Any, leading: torch.Size | None) -> Any:
    return x if leading is None or x is None else x.unflatten(0, leading)


def _matrix(g: Tensor, row: bool, column: bool) -> Tensor:
    """g with the dimensions that a vector operand took away."""
    g = g.unsqueeze(-1) if column else g
    return g.unsqueeze(-2) if row else g


def _as_matrix(shape: torch.Size, side: int) -> torch.Size:
    """The shape of an operand as a matrix: a vector is a row on the left, a column on the right."""
    if len(shape) > 1:
        return shape
    return torch.Size((1, *shape) if side == 0 else (*shape, 1))


def _gram(a: Tensor, g: Tensor, dims: int) -> Tensor:
    """aᵀ g, summed over the leading dimensions in the product itself where b has none."""
    if dims <= 2 and a.shape[:-2] == g.shape[:-2]:
        return torch.mm(a.flatten(0, -2).t(), g.flatten(0, -2))
    return torch.matmul(a.mT, g)


def _register(function: Callable[..., Tensor], *others: Callable[..., Any]) -> None:
    """Register a product, which checks shapes in its own way, and the tensor method of its name."""

    @function_rule(function, *others, methods=(function.__name__,))
    def _(input: Any, other: Any) -> Application:
        return Application(Matmul(function), inputs=(input, other))


_register(torch.matmul, operator.matmul)
_register(torch.bmm)
_register(torch.mm)


@function_rule(F.linear)
def _linear(input: Any, weight: Any, bias: Any = None) -> Application | None:
    """Behind the rule of `linear.py`: a weight that is a value."""
    return Application(Matmul(F.linear, transposed=True), inputs=(input, weight)) if bias is None else None
