"""Sums of two values, and the end of a residual block: a sum with a rectifier behind it.

    Sum            y = x₁ + s x₂        vjp  (g, s g)                jvp  t₁ + s t₂
    RectifiedSum   y = f(x₁ + x₂)       vjp  (f′ g, f′ g), one tensor      jvp  f′ (t₁ + t₂)

f is ReLU or LeakyReLU, and f′ is kept as one bit an element. Operands broadcast; cotangents are summed back to the
operand's shape. Both operands may get the same tensor, as cotangents are never changed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.chain import word
from .activation import Rectifier
from .base import Parameterless, Tensors, add, reduce_to

_ops = torch.ops.datagrad


class Sum(Parameterless):
    """x₁ + s x₂ for a number s, broadcasting."""

    follows_layout = True
    autocast = "widest"

    def __init__(self, scale: float = 1) -> None:
        self._scale = scale

    def with_rectifier(self, rectifier: Rectifier) -> RectifiedSum | None:
        """The sum with ReLU or LeakyReLU behind it; None if it is not a plain sum."""
        return RectifiedSum(self, rectifier) if self._scale == 1 else None

    @property
    def name(self) -> str:
        if self._scale in (1, -1):
            return "Add" if self._scale == 1 else "Sub"
        return f"Add({self._scale:g})"

    def image_link(self, n_params: int, host: tuple[Any, ...]) -> str | None:
        return word("add", False) if self._scale == 1 else None

    def apply(self, *inputs: Any) -> Tensor:
        return inputs[0] - inputs[1] if self._scale == -1 else inputs[0] + _scaled(inputs[1], self._scale)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        y = self.apply(*inputs)
        return y, (tuple(map(shape_of, inputs)), y.shape)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        terms = zip((1, self._scale), saved[0], wanted, strict=True)
        return tuple(_scaled(reduce_to(g, shape), scale) if want else None for scale, shape, want in terms)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        first, second = tangents
        if first is None or second is None:
            return (_scaled(second, self._scale) if first is None else first).expand(saved[1])
        return self.apply(first, second)


class RectifiedSum(Parameterless):
    """A rectified sum, in one pass each way if the operands are alike; if one broadcasts, they are added first."""

    follows_layout = True
    autocast = "widest"
    ops = ("relu_forward", "relu_gate")

    def __init__(self, total: Sum, rectifier: Rectifier) -> None:
        self._sum, self._rectifier = total, rectifier

    @property
    def name(self) -> str:
        return f"{self._sum.name} + {self._rectifier.name}"

    def apply(self, *inputs: Any) -> Tensor:
        return self._rectifier.reference((), (self._sum.apply(*inputs),), ())

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        alike = _alike(*inputs)
        x, other = inputs if alike else (self._sum.apply(*inputs), None)
        y, bits = _ops.relu_forward.default(x, None, 0, self._rectifier.slope, other)
        shapes = None if alike else tuple(map(shape_of, inputs))
        return y, (bits, not y.is_contiguous(), shapes, y.shape)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        gated, shapes = self._gate(saved, g), saved[2]
        if shapes is None:
            return gated, gated
        return tuple(reduce_to(gated, shape) if want else None for shape, want in zip(shapes, wanted, strict=True))

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        first, second = tangents
        if saved[2] is None and first is not None and second is not None:
            return self._gate(saved, first, second)
        return self._gate(saved, add(first, second).expand(saved[3]))

    def _gate(self, saved: Any, g: Tensor, other: Any = None) -> Tensor:
        """f′ (g + other)."""
        return _ops.relu_gate.default(g, saved[0], self._rectifier.slope, saved[1], other)


def shape_of(x: Any) -> torch.Size:
    """The shape of an operand; a host value may be a number."""
    return x.shape if isinstance(x, Tensor) else torch.Size()


def _alike(x: Any, other: Any) -> bool:
    """Whether two operands are tensors of one shape, dtype and device."""
    if not isinstance(x, Tensor) or not isinstance(other, Tensor):
        return False
    return (x.shape, x.dtype, x.device) == (other.shape, other.dtype, other.device)


def _scaled(x: Any, scale: float) -> Any:
    if scale == -1:
        return -x
    return x if scale == 1 else x * scale
