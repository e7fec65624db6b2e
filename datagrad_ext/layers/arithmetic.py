"""Where branches meet: sums, products and concatenations of values, and operations with a number.

    Sum      y = x₁ + s x₂           (layers/sums.py)
    Affine   y = a x + c             vjp  a g             jvp  a t
    Product  y = x₁ x₂               vjp  (g x₂, g x₁)    jvp  t₁ x₂ + x₁ t₂    curvature  (δ t₂, δ t₁)
    Quotient y = x₁ / x₂             vjp  (q, −q y), q = g / x₂                 jvp  (t₁ − y t₂) / x₂
                                     curvature  (−q t₂, q (2 y t₂ − t₁)) / x₂, q = δ / x₂
    Cat      y = [x₁ … x_k]          vjp  split           jvp  [t₁ … t_k]

Operands broadcast; cotangents are summed back to the operand's shape.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Pairs, Parameterless, Tensors, add, add_each, reduce_to
from .registry import Application, function_rule
from .sums import Sum, shape_of


class Affine(Parameterless):
    """a x + c for numbers a and c."""

    follows_layout = True
    autocast = "same"

    def __init__(self, scale: float, shift: float) -> None:
        self._scale, self._shift = scale, shift

    @property
    def name(self) -> str:
        return f"{self._scale:g}·x + {self._shift:g}"

    def apply(self, *inputs: Any) -> Tensor:
        y = self._scaled(inputs[0])
        return y if self._shift == 0 else y + self._shift

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return self.apply(*inputs), ()

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (self._scaled(g),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self._scaled(tangents[0])

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self._scale == 1 else x * self._scale


class Division(Affine):
    """x / c, with the rounding of a division."""

    def __init__(self, divisor: float) -> None:
        super().__init__(1.0, 0.0)
        self._divisor = divisor

    @property
    def name(self) -> str:
        return f"x / {self._divisor:g}"

    def _scaled(self, x: Tensor) -> Tensor:
        return x / self._divisor


class Product(Parameterless):
    """x₁ x₂, broadcasting."""

    curved = paired = follows_layout = True
    autocast = "widest"

    @property
    def name(self) -> str:
        return "Mul"

    def apply(self, *inputs: Any) -> Tensor:
        return inputs[0] * inputs[1]

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        y = self.apply(*inputs)
        return y, (*inputs, y.shape)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return self._cross(saved, g, saved[1], saved[0], wanted)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        terms = [t * x for t, x in zip(tangents, (saved[1], saved[0]), strict=True) if t is not None]
        return sum(terms[1:], terms[0])

    def curvature(self, saved: Any, params: Tensors, pairs: Pairs, wanted: Sequence[bool]) -> Tensors:
        total: Tensors = (None, None)
        for delta, (first, second) in pairs:
            total = add_each(total, self._cross(saved, delta, second, first, wanted))
        return total

    def _cross(self, saved: Any, g: Tensor, first: Any, second: Any, wanted: Sequence[bool]) -> Tensors:
        """(g · first, g · second), each summed to the shape of its operand."""
        terms = zip((first, second), saved, wanted, strict=False)
        return tuple(reduce_to(g * f, x.shape) if want and f is not None else None for f, x, want in terms)


class Quotient(Parameterless):
    """x₁ / x₂, broadcasting."""

    curved = paired = True
    autocast = "widest"

    @property
    def name(self) -> str:
        return "Div"

    def apply(self, *inputs: Any) -> Tensor:
        return inputs[0] / inputs[1]

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        y = self.apply(*inputs)
        return y, (tuple(map(shape_of, inputs)), inputs[1], y)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        shapes, divisor, y = saved
        q = g / divisor
        return _reduced((q, -q * y if wanted[1] else None), shapes, wanted)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        _, divisor, y = saved
        first, second = tangents
        return add(first, None if second is None else -y * second) / divisor

    def curvature(self, saved: Any, params: Tensors, pairs: Pairs, wanted: Sequence[bool]) -> Tensors:
        shapes, divisor, y = saved
        total: Tensors = (None, None)
        for delta, (first, second) in pairs:
            q = delta / (divisor * divisor)
            bar = None if second is None else -q * second
            divisor_bar = add(None if first is None else -q * first, None if bar is None else -2 * bar * y)
            total = add_each(total, _reduced((bar, divisor_bar), shapes, wanted))
        return total


class Cat(Parameterless):
    """Concatenation along a dimension."""

    follows_layout = True
    autocast = "widest"

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def apply(self, *inputs: Any) -> Tensor:
        return torch.cat(inputs, self._dim)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        shapes = tuple(x.shape for x in inputs)
        y = self.apply(*inputs)
        return y, (shapes, _legacy_dim(shapes, self._dim))

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        shapes, dim = saved
        sizes = [0 if shape == (0,) and g.dim() != 1 else shape[dim] for shape in shapes]
        parts = g.split(sizes, dim)
        return tuple(p.reshape(s) if want else None for p, s, want in zip(parts, shapes, wanted, strict=True))

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        like = next(t for t in tangents if t is not None)
        return torch.cat(
            [like.new_zeros(s) if t is None else t for t, s in zip(tangents, saved[0], strict=True)], self._dim
        )


def _legacy_dim(shapes: tuple[torch.Size, ...], dim: int) -> int:
    """`dim` counted from the front in the tensors that are not the empty (0,) which torch.cat skips."""
    return dim % max(len(shape) for shape in shapes)


def _reduced(bars: Tensors, shapes: Sequence[torch.Size], wanted: Sequence[bool]) -> Tensors:
    """The wanted cotangents, summed to the shapes of their operands."""
    terms = zip(bars, shapes, wanted, strict=True)
    return tuple(reduce_to(bar, shape) if want and bar is not None else None for bar, shape, want in terms)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@function_rule(operator.add, operator.iadd, torch.add, methods=("add", "add_"))
def _add(input: Any, other: Any, *, alpha: float = 1) -> Application:
    if _is_number(other):
        return Application(Affine(1, alpha * other), inputs=(input,))
    if _is_number(input):
        return Application(Affine(alpha, input), inputs=(other,))
    return Application(Sum(alpha), inputs=(input, other))


@function_rule(operator.sub, operator.isub, torch.sub, torch.subtract, methods=("sub", "sub_"))
def _sub(input: Any, other: Any, *, alpha: float = 1) -> Application:
    if _is_number(other):
        return Application(Affine(1, -alpha * other), inputs=(input,))
    if _is_number(input):
        return Application(Affine(-alpha, input), inputs=(other,))
    return Application(Sum(-alpha), inputs=(input, other))


@function_rule(operator.mul, operator.imul, torch.mul, torch.multiply, methods=("mul", "mul_"))
def _mul(input: Any, other: Any) -> Application:
    if _is_number(other):
        return Application(Affine(other, 0), inputs=(input,))
    if _is_number(input):
        return Application(Affine(input, 0), inputs=(other,))
    return Application(Product(), inputs=(input, other))


@function_rule(
    operator.truediv, operator.itruediv, torch.div, torch.true_divide, methods=("div", "div_", "true_divide")
)
def _div(input: Any, other: Any) -> Application | None:
    if _is_number(other):
        return Application(Division(other), inputs=(input,))
    return None if _is_number(input) else Application(Quotient(), inputs=(input, other))


@function_rule(operator.neg, torch.neg, methods=("neg",))
def _neg(input: Any) -> Application:
    return Application(Affine(-1, 0), inputs=(input,))


@function_rule(torch.cat, torch.concat, torch.concatenate)
def _cat(tensors: Any, dim: Any = 0) -> Application | None:
    if not isinstance(tensors, (tuple, list)) or not isinstance(dim, int):
        return None
    return Application(Cat(dim), inputs=tuple(tensors))
