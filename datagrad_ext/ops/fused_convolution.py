"""Convolutions with the rectifier behind or in front of them in one pass each: two-dimensional, groups included.

    fused_convolution_forward   rectified(w * x + b)        s z where z is not positive, else z
    fused_convolution_vjp       gated(wᵀ g, h)              s times what is gated where h is not positive
    fused_convolution_jvp       gated(w * t, y)

Letters: x, t (N, C, H, W), w (C', C / groups, kh, kw), b (C'); g (N, C', H', W') a cotangent of the convolution; h its
input, the output of a rectifier of slope s ≥ 0; y its own rectified output. With slope 0 a NaN is no reason to close a
gate, so that it stays visible. Results have the layout of x, of h and of t.

The kernels are plans of cuDNN. `fused_convolution_plans` makes some for operands like those given and returns their
numbers, one of which each of the three ops takes; a plan refuses other operands, and lives until
`fused_convolution_close`. `layers/fused_passes.py` says which plan is used, if any. The references do without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._library import accumulation_dtype, in_layout, is_channels_last, op, require, require_alike, require_shape

_GEOMETRY = "int[] stride, int[] padding, int[] dilation"
_convolution = torch.ops.aten.convolution.default
_convolution_backward = torch.ops.aten.convolution_backward.default


@op(f"fused_convolution_forward(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}, float slope, int plan) -> Tensor")
def fused_convolution_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, slope: float, plan: int
) -> Tensor:
    """rectified(w * x + b)."""
    groups = _groups("fused_convolution_forward", x, weight)
    z = _convolution(x, weight, None, stride, padding, dilation, False, [0, 0], groups)
    z = z.to(accumulation_dtype(x.dtype))
    if bias is not None:
        require_alike("fused_convolution_forward", "bias", bias, "x", x)
        require_shape("fused_convolution_forward", "bias", bias, weight.shape[:1])
        z = z + bias.to(z.dtype).view(-1, 1, 1)
    return in_layout(_gated(z, z, slope).to(x.dtype), is_channels_last(x))


@op(f"fused_convolution_vjp(Tensor g, Tensor weight, Tensor h, {_GEOMETRY}, float slope, int plan) -> Tensor")
def fused_convolution_vjp(
    g: Tensor, weight: Tensor, h: Tensor, stride: Any, padding: Any, dilation: Any, slope: float, plan: int
) -> Tensor:
    """gated(wᵀ g, h)."""
    groups = _groups("fused_convolution_vjp", h, weight)
    require_alike("fused_convolution_vjp", "g", g, "h", h)
    numbers = (stride, padding, dilation, False, [0, 0], groups)
    bar = _convolution_backward(g, h, weight, None, *numbers, [True, False, False])[0]
    return in_layout(_gated(bar, h, slope), is_channels_last(h))


@op(f"fused_convolution_jvp(Tensor t, Tensor weight, Tensor y, {_GEOMETRY}, float slope, int plan) -> Tensor")
def fused_convolution_jvp(
    t: Tensor, weight: Tensor, y: Tensor, stride: Any, padding: Any, dilation: Any, slope: float, plan: int
) -> Tensor:
    """gated(w * t, y)."""
    groups = _groups("fused_convolution_jvp", t, weight)
    require_alike("fused_convolution_jvp", "y", y, "t", t)
    z = _convolution(t, weight, None, stride, padding, dilation, False, [0, 0], groups)
    require_shape("fused_convolution_jvp", "y", y, z.shape)
    return in_layout(_gated(z, y, slope), is_channels_last(t))


@op(
    f"fused_convolution_plans(str sweep, Tensor input, Tensor weight, Tensor? other, {_GEOMETRY}, float slope, "
    "bool tf32, bool deterministic, bool select, int limit) -> int[]"
)
def fused_convolution_plans(
    sweep: str,
    input: Tensor,
    weight: Tensor,
    other: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    slope: float,
    tf32: bool,
    deterministic: bool,
    select: bool,
    limit: int,
) -> Sequence[int]:
    """Numbers of at most `limit` plans of the op of that sweep; `other` is its bias, h or y.

    `select` spells rectifier and gate as a selection instead of by cuDNN's own modes. An error where there is no plan.
    """
    raise RuntimeError(f"fused_convolution_plans: there is no cuDNN behind the device {input.device}")


@op("fused_convolution_close(Tensor like, int plan) -> ()")
def fused_convolution_close(like: Tensor, plan: int) -> None:
    """Free a plan on the device of `like`."""


def gate_by_value(g: Tensor, h: Tensor, slope: float) -> Tensor:
    """g where h, a rectifier's output, is positive, else s g: one pass of ATen."""
    if slope == 0:
        return torch.ops.aten.threshold_backward.default(g, h, 0.0)
    return torch.ops.aten.leaky_relu_backward.default(g, h, slope, True)


def _gated(z: Tensor, h: Tensor, slope: float) -> Tensor:
    if slope == 0:
        return torch.where(h <= 0, 0.0, z)
    return torch.where(h > 0, z, slope * z)


def _groups(name: str, x: Tensor, weight: Tensor) -> int:
    """The number of groups."""
    require_alike(name, "weight", weight, "x", x)
    fits = x.dim() == 4 and weight.dim() == 4 and weight.shape[1] > 0 and x.shape[1] % weight.shape[1] == 0
    require(
        fits,
        f"{name}: x (N, C, H, W) and weight (C', C / groups, kh, kw) do not fit, got {list(x.shape)} and "
        f"{list(weight.shape)}",
    )
    return x.shape[1] // weight.shape[1]
