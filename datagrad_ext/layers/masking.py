"""Values replaced, or shifted, where a mask says so; the mask is a host value, or a bias that is a value itself.

masked_fill      y = c where the mask is set, else x      vjp, jvp  zero where it is set
attention bias   y = x + mask, or −∞ where a bool mask is False; what comes back to −∞ is zero (softmax)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arithmetic import Sum
from .base import Parameterless, Tensors, reduce_to
from .registry import Application, function_rule


class MaskedFill(Parameterless):
    """x with the number `value` where the mask (a host value, broadcasting) is set."""

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


@function_rule(with_mask)
def _with_mask(scores: Any, mask: Any) -> Application:
    return Application(AttentionBias(), inputs=(scores, mask))
