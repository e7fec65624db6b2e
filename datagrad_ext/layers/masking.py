"""Values replaced, or shifted, where a mask says so.

    where            y = a where the condition holds, else b      vjp, jvp  of a where it holds, of b elsewhere
    masked_fill      y = c where the mask is set, else x          vjp, jvp  zero where it is set
    attention bias   y = x + mask, or −∞ where a bool mask is False; what comes back to −∞ is zero (softmax)

The mask is a host value; the bias of attention may be a value itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Parameterless, Tensors, reduce_to
from .registry import Application, function_rule
from .sums import Sum


class MaskedFill(Parameterless):
    """x with the number `value` where the mask (a host value, broadcasting) is set."""

    autocast = "same"

    def __init__(self, value: float) -> None:
        self._value = value

    def apply(self, *inputs: Any) -> Tensor:
        return inputs[0].masked_fill(inputs[1], self._value)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return self.apply(inputs[0], *host), (host[0], inputs[0].shape)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (reduce_to(g.masked_fill(saved[0], 0), saved[1]),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return tangents[0].masked_fill(saved[0], 0)


class Where(Parameterless):
    """a where a condition (a host value) holds, else b; all broadcast, and a or b may be numbers."""

    autocast = "widest"

    def __init__(self, first: float | None, second: float | None) -> None:
        self._numbers = first, second

    def apply(self, *inputs: Any) -> Tensor:
        first, second = self._operands(inputs[:-1])
        return torch.where(inputs[-1], first, second)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        y = self.apply(*inputs, *host)
        return y, (host[0], tuple(x.shape for x in inputs), y.shape)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        condition, shapes, _ = saved
        passed = [torch.where(condition, g, 0.0), torch.where(condition, 0.0, g)]
        bars = [bar for bar, number in zip(passed, self._numbers, strict=True) if number is None]
        terms = zip(bars, shapes, wanted, strict=True)
        return tuple(reduce_to(bar, shape) if want else None for bar, shape, want in terms)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        operands = self._operands(tangents)
        first, second = [t if isinstance(t, Tensor) else 0.0 for t in operands]
        return torch.where(saved[0], first, second).expand(saved[2])

    def _operands(self, values: Tensors) -> tuple[Any, ...]:
        """a and b: the values in the places that have no number."""
        rest = iter(values)
        return tuple(next(rest) if number is None else number for number in self._numbers)


class AttentionBias(Sum):
    """Scores plus a mask as scaled_dot_product_attention takes it."""

    def apply(self, *inputs: Any) -> Tensor:
        return with_mask(*inputs)


def with_mask(scores: Tensor, mask: Tensor) -> Tensor:
    """scores + mask, or −∞ where a bool mask is False."""
    if mask.dtype != torch.bool:
        return scores + mask
    return scores.masked_fill(~mask, float("-inf"))


@function_rule(torch.masked_fill, methods=("masked_fill", "masked_fill_"))
def _masked_fill(input: Any, mask: Any, value: Any) -> Application | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return Application(MaskedFill(value), inputs=(input,), host=(mask,))


@function_rule(torch.where)
def _where(condition: Any, input: Any, other: Any) -> Application | None:
    numbers = [x if isinstance(x, (int, float)) else None for x in (input, other)]
    values = tuple(x for x, number in zip((input, other), numbers, strict=True) if number is None)
    return Application(Where(*numbers), inputs=values, host=(condition,)) if values else None


@function_rule(with_mask)
def _with_mask(scores: Any, mask: Any) -> Application:
    return Application(AttentionBias(), inputs=(scores, mask))
