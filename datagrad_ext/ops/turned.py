"""Passes over activations of a matrix that write the transposed copy of their result as well.

    turned_copy             aᵀ, dense
    relu_reverse_turned     `relu_reverse` and the transposed copy of gx
    smooth_reverse_turned   `smooth_reverse` and the transposed copy of gx

On CUDA, for float32 with a multiple of 8 columns, they show what chains run where the gradient of a weight is made from
transposed copies (`ops.product`): tensor cores read tf32 fastest along the sum. Other operands are an error there. The
references are the passes one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import activation
from ._library import op, require


@op("turned_copy(Tensor a) -> Tensor")
def turned_copy(a: Tensor) -> Tensor:
    """aᵀ, dense."""
    require(a.dim() == 2, f"turned_copy: needs a matrix, got shape {list(a.shape)}")
    return a.t().contiguous()


@op(
    "relu_reverse_turned(Tensor g, Tensor bits, float slope, bool bias_grad) -> (Tensor gx, Tensor sums, Tensor turned)"
)
def relu_reverse_turned(g: Tensor, bits: Tensor, slope: float, bias_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """g where the bit is set, else slope·g; its sums over rows, (0,) if not asked for; its transposed copy."""
    gx, sums = activation.relu_reverse(g, bits, slope, False, -1)
    return gx, sums if bias_grad else g.new_empty(0), turned_copy(gx)


@op(
    "smooth_reverse_turned(Tensor? zeta, Tensor[] tangents, Tensor[] cotangents, Tensor x, Tensor? bias, str kind,"
    " float[] constants, bool bias_grad) -> (Tensor gx, Tensor sums, Tensor turned)"
)
def smooth_reverse_turned(
    zeta: Tensor | None,
    tangents: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    x: Tensor,
    bias: Tensor | None,
    kind: str,
    constants: Sequence[float],
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """f'(z) ζ + f''(z) Σ_i t_i δ_i; its sums over rows, (0,) if not asked for; its transposed copy."""
    gx, sums = activation.smooth_reverse(zeta, tangents, cotangents, x, bias, -1, kind, constants, bias_grad)
    return gx, sums, turned_copy(gx)
