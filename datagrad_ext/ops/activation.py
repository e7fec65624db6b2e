"""Activations: bias + activation, its vjp/jvp, its curvature and the bias gradient, in one pass each.

    z = x + bias        y = f(z)        f'(z) g        f'(z) ζ + f''(z) Σ_i t_i δ_i

Letters: `x` pre-activation without bias, `g`/`δ`/`ζ` cotangents, `t` tangent, `C` channels; `bias` has shape
(C,) and is broadcast along `channel_dim`, or is None. `other` has x's shape and is added to z (relu_forward), or to g
before the gate (relu_gate): residual blocks; None is zero. Piecewise-linear activations (ReLU, LeakyReLU) save one
bit an element and are not curved: ops relu_*. Smooth ones recompute f' and f'' from x: ops smooth_*, rows of
ACTIVATIONS.

Memory: x is walked in memory order, in its own layout if that is contiguous or channels_last (4-D, 5-D),
else in a contiguous copy; results have that layout. Bit k of byte i is element 8i + k in memory order.
16-bit inputs are computed in float32 and rounded once. The CPU kernels of smooth activations give zero for a result
below the smallest normal number of the dtype they compute in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._library import (
    CHANNELS_LAST,
    accumulation_dtype,
    in_layout,
    is_channels_last,
    op,
    require,
    require_alike,
    require_floating,
    require_shape,
)


@dataclass(frozen=True)
class Activation:
    """A smooth activation: f, f', f'' as functions of (z, *constants), and how torch spells it."""

    name: str
    f: Callable[..., Tensor]
    first: Callable[..., Tensor]
    second: Callable[..., Tensor]
    constants: tuple[str, ...]
    """Attributes of `module` that are the constants, in order."""
    module: type[nn.Module]
    functions: tuple[Callable[..., Any], ...]
    """The torch functions that compute f."""


def _softplus_first(z: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(beta * z > threshold, 1.0, torch.sigmoid(beta * z))


def _softplus_second(z: Tensor, beta: float, threshold: float) -> Tensor:
    curvature = beta * torch.sigmoid(beta * z) * torch.sigmoid(-beta * z)
    return torch.where(beta * z >= threshold, 0.0, curvature)


def _tanh_first(z: Tensor) -> Tensor:
    return 4 * _sigmoid_first(2 * z)  # 1 - tanh² cancels


def _tanh_second(z: Tensor) -> Tensor:
    return -2 * torch.tanh(z) * _tanh_first(z)


def _sigmoid_first(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _sigmoid_second(z: Tensor) -> Tensor:
    return -_sigmoid_first(z) * torch.tanh(z / 2)  # 1 - 2 σ(z) = -tanh(z / 2)


def _elu_first(z: Tensor, alpha: float) -> Tensor:
    return torch.where(z > 0, 1.0, alpha * torch.exp(z))


def _elu_second(z: Tensor, alpha: float) -> Tensor:
    return torch.where(z >= 0, 0.0, alpha * torch.exp(z))


def _silu_first(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * (1 + z * torch.sigmoid(-z))


def _silu_second(z: Tensor) -> Tensor:
    return _sigmoid_first(z) * (2 - z * torch.tanh(z / 2))


def _gelu_first(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * _normal_density(z)


def _gelu_second(z: Tensor) -> Tensor:
    z = z.clamp(-1e4, 1e4)  # the density is 0 beyond, and must not meet an infinite square
    return (2 - z * z) * _normal_density(z)


def _normal_density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


_GELU_TANH_SLOPE = 2 * math.sqrt(2 / math.pi)
_GELU_TANH_CUBE = 0.044715


def _gelu_tanh_inner(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z clamped, w and w' of z (1 + tanh u) / 2 = z σ(w), w = 2u = 2 √(2/π) (z + 0.044715 z³)."""
    z = z.clamp(-50, 50)  # σ is 0 or 1 beyond, and must not meet an infinite power
    w = _GELU_TANH_SLOPE * (z + _GELU_TANH_CUBE * z**3)
    return z, w, _GELU_TANH_SLOPE * (1 + 3 * _GELU_TANH_CUBE * z * z)


def _gelu_tanh_first(z: Tensor) -> Tensor:
    z, w, dw = _gelu_tanh_inner(z)
    return torch.sigmoid(w) + z * _sigmoid_first(w) * dw


def _gelu_tanh_second(z: Tensor) -> Tensor:
    z, w, dw = _gelu_tanh_inner(z)
    ddw = 6 * _GELU_TANH_SLOPE * _GELU_TANH_CUBE * z
    return _sigmoid_first(w) * (2 * dw + z * ddw - z * dw * dw * torch.tanh(w / 2))


def _gelu_tanh(z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


_ROWS = (
    Activation(
        "softplus",
        F.softplus,
        _softplus_first,
        _softplus_second,
        ("beta", "threshold"),
        nn.Softplus,
        (F.softplus,),
    ),
    Activation("tanh", torch.tanh, _tanh_first, _tanh_second, (), nn.Tanh, (torch.tanh, F.tanh)),
    Activation(
        "sigmoid",
        torch.sigmoid,
        _sigmoid_first,
        _sigmoid_second,
        (),
        nn.Sigmoid,
        (torch.sigmoid, F.sigmoid),
    ),
    Activation("elu", F.elu, _elu_first, _elu_second, ("alpha",), nn.ELU, (F.elu,)),
    Activation("silu", F.silu, _silu_first, _silu_second, (), nn.SiLU, (F.silu,)),
    Activation("gelu", F.gelu, _gelu_first, _gelu_second, (), nn.GELU, (F.gelu,)),
    Activation("gelu_tanh", _gelu_tanh, _gelu_tanh_first, _gelu_tanh_second, (), nn.GELU, ()),
)
ACTIVATIONS: dict[str, Activation] = {row.name: row for row in _ROWS}


def _memory_order(dims: int, channels_last: bool) -> list[int]:
    """The dimensions from slowest to fastest in memory."""
    return [0, *range(2, dims), 1] if channels_last else list(range(dims))


def _pack(mask: Tensor, channels_last: bool) -> Tensor:
    """The bits of a boolean tensor in memory order, (ceil(numel / 8),) uint8."""
    flat = mask.permute(_memory_order(mask.dim(), channels_last)).reshape(-1)
    octets = F.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    return (octets << _bit_positions(mask.device)).sum(1, dtype=torch.uint8)


def _unpack(bits: Tensor, like: Tensor, channels_last: bool) -> Tensor:
    """The boolean tensor of `like`'s shape whose bits in memory order are `bits`."""
    order = _memory_order(like.dim(), channels_last)
    flat = ((bits[:, None] >> _bit_positions(bits.device)) & 1).reshape(-1)[: like.numel()].bool()
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return flat.reshape([like.shape[d] for d in order]).permute(inverse)


def _bit_positions(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


def _channel_dim(op_name: str, x: Tensor, channel_dim: int) -> int:
    dims = x.dim()
    require(
        -dims <= channel_dim < dims,
        f"{op_name}: channel_dim must name one of the {dims} dimensions, got {channel_dim}",
    )
    return channel_dim % dims


def _pre_activation(op_name: str, x: Tensor, bias: Tensor | None, channel_dim: int) -> Tensor:
    """z = x + bias in the accumulation dtype."""
    require_floating(op_name, "x", x)
    z = x.to(accumulation_dtype(x.dtype))
    if bias is None:
        return z
    dim = _channel_dim(op_name, x, channel_dim)
    require_alike(op_name, "bias", bias, "x", x)
    require_shape(op_name, "bias", bias, (x.shape[dim],))
    return z + bias.to(z.dtype).reshape([-1 if d == dim else 1 for d in range(x.dim())])


def _activation(op_name: str, kind: str, constants: Sequence[float]) -> Activation:
    require(kind in ACTIVATIONS, f"{op_name}: kind must be one of {', '.join(ACTIVATIONS)}, got {kind}")
    expected = len(ACTIVATIONS[kind].constants)
    require(
        len(constants) == expected,
        f"{op_name}: {kind} has {expected} constants, got {len(constants)}",
    )
    return ACTIVATIONS[kind]


def _relu_arguments(op_name: str, g: Tensor, bits: Tensor, channels_last: bool) -> None:
    require_floating(op_name, "g", g)
    require(bits.dtype == torch.uint8, f"{op_name}: bits must have dtype uint8, got {str(bits.dtype)[6:]}")
    require(bits.device == g.device, f"{op_name}: bits must be on g's device {g.device}, got {bits.device}")
    require_shape(op_name, "bits", bits, ((g.numel() + 7) // 8,))
    require(
        not channels_last or g.dim() in CHANNELS_LAST,
        f"{op_name}: channels_last needs 4 or 5 dimensions, got {g.dim()}; pass channels_last=False",
    )


def _sum_to_channels(t: Tensor, channel_dim: int) -> Tensor:
    others = [d for d in range(t.dim()) if d != channel_dim]
    return t.sum(others) if others else t.clone()


@op(
    "relu_forward(Tensor x, Tensor? bias, int channel_dim, float slope, Tensor? other=None)"
    " -> (Tensor y, Tensor bits)"
)
def relu_forward(
    x: Tensor, bias: Tensor | None, channel_dim: int, slope: float, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y = z where positive, else slope·z, and the mask as bits; a NaN stays visible."""
    z = _pre_activation("relu_forward", x, bias, channel_dim)
    if other is not None:
        _require_like("relu_forward", "other", other, "x", x)
        z = z + other
    mask = ~(z <= 0) if slope == 0 else z > 0
    channels_last = is_channels_last(x)
    return in_layout(_gate(z, mask, slope).to(x.dtype), channels_last), _pack(mask, channels_last)


@op("relu_gate(Tensor g, Tensor bits, float slope, bool channels_last, Tensor? other=None) -> Tensor")
def relu_gate(g: Tensor, bits: Tensor, slope: float, channels_last: bool, other: Tensor | None = None) -> Tensor:
    """g where the bit is set, else slope·g: vjp and jvp alike."""
    _relu_arguments("relu_gate", g, bits, channels_last)
    total = g
    if other is not None:
        _require_like("relu_gate", "other", other, "g", g)
        total = g.to(accumulation_dtype(g.dtype)) + other
    return in_layout(wide_gate(total, bits, slope, channels_last).to(g.dtype), channels_last)


@op(
    "relu_reverse(Tensor g, Tensor bits, float slope, bool channels_last, int channel_dim)"
    " -> (Tensor gx, Tensor bias_grad)"
)
def relu_reverse(g: Tensor, bits: Tensor, slope: float, channels_last: bool, channel_dim: int) -> tuple[Tensor, Tensor]:
    """relu_gate and its sum over all dimensions but channel_dim, (C,)."""
    _relu_arguments("relu_reverse", g, bits, channels_last)
    dim = _channel_dim("relu_reverse", g, channel_dim)
    gx = wide_gate(g, bits, slope, channels_last)
    return in_layout(gx.to(g.dtype), channels_last), _sum_to_channels(gx, dim).to(g.dtype)


def wide_gate(g: Tensor, bits: Tensor, slope: float, channels_last: bool) -> Tensor:
    """relu_gate before it is rounded."""
    return _gate(g.to(accumulation_dtype(g.dtype)), _unpack(bits, g, channels_last), slope)


def _gate(g: Tensor, mask: Tensor, slope: float) -> Tensor:
    return torch.where(mask, g, 0.0 if slope == 0 else slope * g)


@op("smooth_forward(Tensor x, Tensor? bias, int channel_dim, str kind, float[] constants) -> Tensor")
def smooth_forward(x: Tensor, bias: Tensor | None, channel_dim: int, kind: str, constants: Sequence[float]) -> Tensor:
    """f(z)."""
    activation = _activation("smooth_forward", kind, constants)
    z = _pre_activation("smooth_forward", x, bias, channel_dim)
    return in_layout(activation.f(z, *constants).to(x.dtype), is_channels_last(x))


@op("smooth_gate(Tensor g, Tensor x, Tensor? bias, int channel_dim, str kind, float[] constants) -> Tensor")
def smooth_gate(
    g: Tensor, x: Tensor, bias: Tensor | None, channel_dim: int, kind: str, constants: Sequence[float]
) -> Tensor:
    """f'(z) g: vjp and jvp alike."""
    activation = _activation("smooth_gate", kind, constants)
    z = _pre_activation("smooth_gate", x, bias, channel_dim)
    _require_like("smooth_gate", "g", g, "x", x)
    return in_layout((activation.first(z, *constants) * g).to(x.dtype), is_channels_last(x))


@op(
    "smooth_reverse(Tensor? zeta, Tensor[] tangents, Tensor[] cotangents, Tensor x, Tensor? bias,"
    " int channel_dim, str kind, float[] constants, bool bias_grad) -> (Tensor gx, Tensor bias_grad)"
)
def smooth_reverse(
    zeta: Tensor | None,
    tangents: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    x: Tensor,
    bias: Tensor | None,
    channel_dim: int,
    kind: str,
    constants: Sequence[float],
    bias_grad: bool,
) -> tuple[Tensor, Tensor]:
    """f'(z) ζ + f''(z) Σ_i t_i δ_i (ζ None: no first term), and its sum to (C,), or (0,) if not asked for."""
    activation = _activation("smooth_reverse", kind, constants)
    z = _pre_activation("smooth_reverse", x, bias, channel_dim)
    require(
        len(tangents) == len(cotangents),
        f"smooth_reverse: needs one cotangent per tangent, got {len(tangents)} tangents and "
        f"{len(cotangents)} cotangents",
    )
    gx = torch.zeros_like(z)
    if zeta is not None:
        _require_like("smooth_reverse", "zeta", zeta, "x", x)
        gx = activation.first(z, *constants) * zeta
    if tangents:
        gx = gx + activation.second(z, *constants) * _sum_of_products(tangents, cotangents, x, z.dtype)
    sums = x.new_empty(0)
    if bias_grad:
        sums = _sum_to_channels(gx, _channel_dim("smooth_reverse", x, channel_dim)).to(x.dtype)
    return in_layout(gx.to(x.dtype), is_channels_last(x)), sums


def _sum_of_products(tangents: Sequence[Tensor], cotangents: Sequence[Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    for tangent, cotangent in zip(tangents, cotangents, strict=True):
        _require_like("smooth_reverse", "tangent", tangent, "x", x)
        _require_like("smooth_reverse", "cotangent", cotangent, "x", x)
    products = [t.to(dtype) * c.to(dtype) for t, c in zip(tangents, cotangents, strict=True)]
    return torch.stack(products).sum(0)


def _require_like(op_name: str, name: str, t: Tensor, like_name: str, like: Tensor) -> None:
    require_alike(op_name, name, t, like_name, like)
    require_shape(op_name, name, t, like.shape)
