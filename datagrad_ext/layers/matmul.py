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

    def __init__(self, function: Callable[..., Tensor], transposed: bool = False) -> None:
        self._function, self._transposed = function, transposed

    def apply(self, *inputs: Any) -> Tensor:
        return self._function(*inputs)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return self.apply(*inputs), inputs

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return self._pull(saved, g, saved[0], saved[1], wanted)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        a, b = saved
        first = None if tangents[0] is None else self.apply(tangents[0], b)
        return add(first, None if tangents[1] is None else self.apply(a, tangents[1]))

    def curvature(self, saved: Any, params: Tensors, pairs: Pairs, wanted: Sequence[bool]) -> Tensors:
        total: Tensors = (None, None)
        for delta, (first, second) in pairs:
            total = add_each(total, self._pull(saved, delta, first, second, wanted))
        return total

    def _pull(self, saved: Any, g: Tensor, a: Any, b: Any, wanted: Sequence[bool]) -> Tensors:
        """(g bᵀ, aᵀ g), of the shapes of what was multiplied; None for None."""
        shapes = [x.shape for x in saved]
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
