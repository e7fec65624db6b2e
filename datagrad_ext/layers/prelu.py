"""PReLU: y = x where x > 0, else a x, with one slope a, or one for each channel (dimension 1).

    vjp  g where x > 0, else a g      jvp  the same of t      ā = Σ (ζ x + δ t) where x ≤ 0

Linear in x beside the kink, so there is no curvature; a multiplies x, so sweep 3 takes its gradient from (δ, t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Layer, Tensors, add
from .registry import Application, function_rule, module_rule


class PReLU(Layer):
    """Params are (a,), of shape (1,) or (C,)."""

    paired = follows_layout = True
    autocast = "low"

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return F.prelu(inputs[0], params[0]), (inputs[0],)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (self._gate(saved[0], params[0], g),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return self._gate(saved[0], params[0], tangents[0])

    def param_vjp(
        self, saved: Any, params: Tensors, g: Any, tangents: Tensors | None, wanted: Sequence[bool], sums: Tensors
    ) -> Tensors:
        (x,), (slope,) = saved, params
        products = torch.where(x > 0, 0.0, g * (x if tangents is None else tangents[0]))
        channel = 1 if slope.numel() > 1 else None
        others = [d for d in range(x.dim()) if d != channel]
        part = products.sum(others) if others else products
        return (add(sums[0], part.view_as(slope)),)

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        return F.prelu(inputs[0], params[0])

    def _gate(self, x: Tensor, slope: Tensor, g: Tensor) -> Tensor:
        if slope.numel() > 1:
            slope = slope.view(-1, *[1] * (x.dim() - 2))
        return torch.where(x > 0, g, slope * g)


@module_rule(nn.PReLU)
def _module(module: nn.PReLU) -> Application:
    return Application(PReLU(), params=("weight",))


@function_rule(F.prelu, torch.prelu)
def _function(input: Any, weight: Any) -> Application:
    return Application(PReLU(), inputs=(input,), params=(weight,))
