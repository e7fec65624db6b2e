"""Linear: y = x Wᵀ + b, for x (…, in), W (out, in), b (out,).

    vjp   g W          jvp   t Wᵀ          W̄ = Σ δᵀt + ζᵀx          b̄ = Σ ζ

The bias is in the value and not in the tangent: its gradient comes from ζ alone. The products of W̄ accumulate into the
first one, so that no sum of weight-sized tensors is a pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.chain import word
from .base import Layer, Tensors
from .registry import Application, function_rule, module_rule


class Linear(Layer):
    """x Wᵀ + b; params are (W, b), or (W,) without a bias."""

    paired = True
    autocast = "low"
    bias_dim = -1  # the dimension of y along which the bias lies
    batch_rank = 2  # the dimensions of x for which the outputs are dimension 1 of y
    output_groups: int | None = None  # the outputs are the first dimension of the weight

    def link(self, n_params: int) -> str | None:
        return word("linear", n_params == 2)

    def forward(self, inputs: Tensors, params: Tensors, *host: Any) -> tuple[Tensor, tuple]:
        return F.linear(inputs[0], *params), (inputs[0],)

    def vjp(self, saved: Any, params: Tensors, g: Tensor, wanted: Sequence[bool]) -> Tensors:
        return (torch.matmul(g, params[0]),)

    def jvp(self, saved: Any, params: Tensors, tangents: Tensors, record: Any) -> Tensor:
        return F.linear(tangents[0], params[0])

    def param_vjp(
        self, saved: Any, params: Tensors, g: Any, tangents: Tensors | None, wanted: Sequence[bool], sums: Tensors
    ) -> Tensors:
        weight, *bias = sums
        rows = _rows(g)
        if wanted[0]:
            x = _rows(saved[0] if tangents is None else tangents[0])
            weight = torch.mm(rows.t(), x) if weight is None else weight.addmm_(rows.t(), x)
        if tangents is None and True in wanted[1:]:
            bias = [rows.sum(0)]
        return weight, *bias

    def reference(self, saved: Any, inputs: Tensors, params: Tensors, *host: Any) -> Tensor:
        return F.linear(inputs[0], *params)


def _rows(x: Tensor) -> Tensor:
    """A matrix: all leading dimensions as one."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


@module_rule(nn.Linear)
def _module(module: nn.Linear) -> Application:
    return Application(Linear(), params=("weight", "bias"))


@function_rule(F.linear)
def _function(input: Any, weight: Any, bias: Any = None) -> Application:
    return Application(Linear(), inputs=(input,), params=(weight, bias))
