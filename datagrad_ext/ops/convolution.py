"""Small two-dimensional convolutions: y = w * x + b, alone and with a rectifier behind them.

    convolution_forward        w * x + b (and w * t, without a bias)
    convolution_reverse        x̄ = vjp(ζ), w̄ = wgrad(ζ, x) + Σ wgrad(δ, t), each if wanted
    convolution_relu_forward   f(w * x + b) and the bits of its mask, f a ReLU (slope 0) or LeakyReLU
    convolution_relu_vjp       vjp of g behind the gate
    convolution_relu_jvp       w * t behind the gate
    convolution_relu_reverse   convolution_reverse of ζ and δ behind the gate, and the sum b̄ of the former

Letters: x (N, C, H, W), w (C', C, kh, kw), b (C',); ζ, δ cotangents of y, t tangents of x. float32 and float64. Results
have the layout of what they belong to: y and x̄ that of x, w̄ that of w.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import activation
from ._library import (
    in_layout,
    is_channels_last,
    op,
    require,
    require_alike,
    require_shape,
)

_GEOMETRY = "int[] stride, int[] padding, int[] dilation"
_convolution = torch.ops.aten.convolution.default
_convolution_backward = torch.ops.aten.convolution_backward.default


@op(f"convolution_forward(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor")
def convolution_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """w * x + b."""
    _check("convolution_forward", x, weight, stride, padding, dilation)
    if bias is not None:
        require_alike("convolution_forward", "bias", bias, "x", x)
        require_shape("convolution_forward", "bias", bias, weight.shape[:1])
    y = _convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], 1)
    return in_layout(y, is_channels_last(x))


@op(
    "convolution_reverse(Tensor? zeta, Tensor x, Tensor[] cotangents, Tensor[] tangents, Tensor weight, "
    f"{_GEOMETRY}, bool want_x, bool want_weight) -> Tensor[]"
)
def convolution_reverse(
    zeta: Tensor | None,
    x: Tensor,
    cotangents: Sequence[Tensor],
    tangents: Sequence[Tensor],
    weight: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    want_x: bool,
    want_weight: bool,
) -> list[Tensor]:
    """[x̄, w̄], those that are wanted."""
    name = "convolution_reverse"
    out = _check(name, x, weight, stride, padding, dilation)
    require(
        len(cotangents) == len(tangents),
        f"{name}: needs as many cotangents as tangents, got {len(cotangents)} and {len(tangents)}",
    )
    pairs = [*zip(cotangents, tangents, strict=True), *([] if zeta is None else [(zeta, x)])]
    for g, t in pairs:
        require_alike(name, "every cotangent", g, "x", x)
        require_alike(name, "every tangent", t, "x", x)
        require_shape(name, "every cotangent", g, out)
        require_shape(name, "every tangent", t, x.shape)
    require(zeta is not None or not want_x, f"{name}: the gradient of x needs zeta")

    def products(g: Any, features: Tensor, mask: list[bool]) -> list[Any]:
        numbers = (stride, padding, dilation, False, [0, 0], 1)
        return list(_convolution_backward(g, features, weight, None, *numbers, mask))

    found = []
    if want_x:
        found.append(in_layout(products(zeta, x, [True, False, False])[0], is_channels_last(x)))
    if want_weight:
        parts = [products(g, t, [False, True, False])[1] for g, t in pairs]
        w_bar = torch.stack(parts).sum(0) if parts else torch.zeros_like(weight)
        found.append(in_layout(w_bar, is_channels_last(weight)))
    return found


_GATE = "Tensor bits, float slope, Tensor x, Tensor weight"


@op(
    f"convolution_relu_forward(Tensor x, Tensor weight, Tensor? bias, float slope, {_GEOMETRY})"
    " -> (Tensor y, Tensor bits)"
)
def convolution_relu_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, slope: float, stride: Any, padding: Any, dilation: Any
) -> tuple[Tensor, Tensor]:
    """The value, and the bits of relu_forward in its memory order."""
    return activation.relu_forward(convolution_forward(x, weight, bias, stride, padding, dilation), None, 1, slope)


@op(f"convolution_relu_vjp(Tensor g, {_GATE}, {_GEOMETRY}) -> Tensor")
def convolution_relu_vjp(
    g: Tensor, bits: Tensor, slope: float, x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """x̄; x gives its shape and layout."""
    return convolution_relu_reverse(g, bits, slope, x, weight, [], [], stride, padding, dilation, True, False, False)[0]


@op(f"convolution_relu_jvp(Tensor t, {_GATE}, {_GEOMETRY}) -> Tensor")
def convolution_relu_jvp(
    t: Tensor, bits: Tensor, slope: float, x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """The tangent of y, in its layout."""
    require_alike("convolution_relu_jvp", "every tangent", t, "x", x)
    require_shape("convolution_relu_jvp", "every tangent", t, x.shape)
    y = convolution_forward(t, weight, None, stride, padding, dilation)
    return activation.relu_gate(y, bits, slope, is_channels_last(x))


@op(
    f"convolution_relu_reverse(Tensor? zeta, {_GATE}, Tensor[] cotangents, Tensor[] tangents, {_GEOMETRY}, "
    "bool want_x, bool want_weight, bool want_bias) -> Tensor[]"
)
def convolution_relu_reverse(
    zeta: Tensor | None,
    bits: Tensor,
    slope: float,
    x: Tensor,
    weight: Tensor,
    cotangents: Sequence[Tensor],
    tangents: Sequence[Tensor],
    stride: Any,
    padding: Any,
    dilation: Any,
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
) -> list[Tensor]:
    """[x̄, w̄, b̄], those that are wanted."""
    name, channels_last, b_bar = "convolution_relu_reverse", is_channels_last(x), None
    out = _check(name, x, weight, stride, padding, dilation)
    require(zeta is not None or not want_bias, f"{name}: the gradient of the bias needs zeta")
    for g in [*cotangents, *([] if zeta is None else [zeta])]:
        require_shape(name, "every cotangent", g, out)
    if zeta is not None:
        zeta, b_bar = activation.relu_reverse(zeta, bits, slope, channels_last, 1)
    cotangents = [activation.relu_gate(delta, bits, slope, channels_last) for delta in cotangents]
    numbers = (stride, padding, dilation)
    found = convolution_reverse(zeta, x, cotangents, tangents, weight, *numbers, want_x, want_weight)
    return [*found, b_bar] if want_bias and b_bar is not None else found


def _check(name: str, x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> list[int]:
    """The shape of y."""
    require(
        x.dtype in (torch.float32, torch.float64),
        f"{name}: x must be float32 or float64, got {str(x.dtype).removeprefix('torch.')}; convert it first",
    )
    require_alike(name, "weight", weight, "x", x)
    require(
        x.dim() == 4 and weight.dim() == 4 and x.shape[1] == weight.shape[1],
        f"{name}: x (N, C, H, W) and weight (C', C, kh, kw) do not fit, got {list(x.shape)} and {list(weight.shape)}",
    )
    require(0 not in weight.shape[:2], f"{name}: weight (C', C, kh, kw) needs channels, got {list(weight.shape)}")
    sizes = []
    for what, numbers in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        require(len(numbers) == 2, f"{name}: {what} must be 2 numbers, got {len(numbers)}")
    for size, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True):
        require(
            s > 0 and p >= 0 and d > 0,
            f"{name}: stride and dilation must be positive, padding must not be negative",
        )
        free = size + 2 * p - d * (k - 1) - 1
        require(
            free >= 0 and k > 0,
            f"{name}: the kernel {list(weight.shape)} does not fit into the padded input {list(x.shape)}",
        )
        sizes.append(free // s + 1)
    return [x.shape[0], weight.shape[0], *sizes]
