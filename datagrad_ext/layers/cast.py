"""Cast: y = x in another floating dtype, as torch.autocast does it: float64 and integers stay as they are.

    vjp  g in the dtype of x      jvp  t in the dtype of y
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Parameterless, Tensors


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`, if autocast may change it."""
    return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x


class Cast(Parameterless):
    """The cast in front of a layer under autocast; the host value is the dtype."""

    aliases = follows_layout = True

    def acted(self, saved: Any) -> bool:
        return saved[0] != saved[1]

    def apply(self, *inputs: Any) -> Tensor:
        return cast(*inputs)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        y = cast(inputs[0], *host)
        return y, (inputs[0].dtype, y.dtype)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (g.to(saved[0]),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return tangents[0].to(saved[1])
