"""Normalisation by statistics of the input: the value with its statistics, vjp, jvp, and sweep 4 whole.

    x̂ = (x − μ) r      r = (var + ε)^(−½)      y = w x̂ + b      P u = u − mean u − x̂ mean(x̂ u)

    vjp  r P(w g)      jvp  w r P t      x̄ = r P(w ζ) − r² Σ_i (c x̂ + b P h + a P t)      w̄ = Σ ζ x̂ + Σ_i δ r P t

with h = w δ, a = mean(x̂ h), b = mean(x̂ t), c = mean(h t) − mean h mean t − a b for each pair (t, δ); b̄ = Σ ζ. The means
are those of one set of elements with common statistics, the sums run over all dimensions but the channel. DESIGN.md
("Normalisation") derives them.

Letters: `x` (N, C, …), `weight` and `bias` (C,) or None, `g`/`δ`/`ζ` cotangents, `t` tangent, of x's shape. `groups`
says which elements have common statistics: 0, those of a channel in all samples (batch norm); G ≥ 1, those of a group
of C/G neighbouring channels in one sample (group norm; C is instance norm; layer norm is G = 1 of (rows, elements)).
`mean` and `rstd` have shape (C,) or (N, G); they, and gradients of parameters, are float32 for the 16-bit formats, else
of x's dtype. Parameters are of x's dtype, or float32 beside a 16-bit x.

A rectifier behind the norm (`bits`, `slope` as in `ops.activation`) is part of the same passes: cotangents are gated as
they are read, values and images of tangents as they are written. bits None: no rectifier.

Memory: as for activations, x is walked in its own layout (contiguous or channels_last), which results have too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import activation
from ._library import (
    accumulation_dtype,
    in_layout,
    is_channels_last,
    op,
    require,
    require_alike,
    require_floating,
    require_shape,
)


class _Sets:
    """x with its sets of common statistics in dimensions of their own: (N, C, S), or (N, G, C/G, S)."""

    def __init__(self, x: Tensor, groups: int) -> None:
        n, c, size = x.shape[0], x.shape[1], math.prod(x.shape[2:])
        self.x, self.groups = x, groups
        self.dtype = accumulation_dtype(x.dtype)
        self.shape = (n, groups, c // groups, size) if groups else (n, c, size)
        self.stat_shape = (n, groups) if groups else (c,)
        self._dims = (2, 3) if groups else (0, 2)
        self.count = max(1, c // groups * size if groups else n * size)

    def spread(self, t: Tensor) -> Tensor:
        """A tensor of x's shape, in the accumulation dtype."""
        return t.to(self.dtype).reshape(self.shape)

    def gated(self, g: Tensor, bits: Tensor | None, slope: float) -> Tensor:
        """A cotangent in front of the rectifier, spread."""
        if bits is None:
            return self.spread(g)
        return activation.wide_gate(g, bits, slope, is_channels_last(self.x)).reshape(self.shape)

    def channels(self, parameter: Tensor | None) -> Tensor | float:
        """A parameter along the channels; 1 for none."""
        if parameter is None:
            return 1.0
        return parameter.to(self.dtype).reshape((*self.shape[1:-1], 1))

    def statistic(self, t: Tensor) -> Tensor:
        """`mean` or `rstd` along the sets."""
        return t.reshape((*self.stat_shape, 1, 1) if self.groups else (-1, 1))

    def mean(self, u: Tensor) -> Tensor:
        """The mean over each set."""
        return u.sum(self._dims, keepdim=True) / self.count

    def projected(self, u: Tensor, x_hat: Tensor) -> Tensor:
        """P u."""
        return u - self.mean(u) - x_hat * self.mean(x_hat * u)

    def to_channels(self, u: Tensor) -> Tensor:
        """The sum over all dimensions but the channel, (C,)."""
        return u.sum((0, -1)).reshape(-1)

    def back(self, u: Tensor) -> Tensor:
        """u in x's shape, dtype and layout."""
        return in_layout(u.to(self.x.dtype).reshape(self.x.shape), is_channels_last(self.x))


@op(
    "normalise_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var,"
    " int groups, float momentum, float eps) -> (Tensor y, Tensor mean, Tensor rstd)"
)
def normalise_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    groups: int,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = w x̂ + b and the statistics; running statistics (C,) become (1 − momentum) old + momentum new, in place.

    The new variance is the unbiased one, and with groups = C both are means over the samples, as in PyTorch.
    """
    name = "normalise_forward"
    sets = _sets(name, x, groups)
    for argument, t in (
        ("weight", weight),
        ("bias", bias),
        ("running_mean", running_mean),
        ("running_var", running_var),
    ):
        _require_per_channel(name, argument, t, x)
    require(
        (running_mean is None) == (running_var is None) and (running_mean is None or groups in (0, x.shape[1])),
        f"{name}: running_mean and running_var come together, with groups = 0 or C = {x.shape[1]}, "
        f"got groups = {groups}",
    )
    z = sets.spread(x)
    mean = sets.mean(z)
    centred = z - mean
    var = sets.mean(centred.square())
    rstd = (var + eps).rsqrt()
    y = centred * rstd * sets.channels(weight)
    if bias is not None:
        y = y + sets.channels(bias)
    if running_mean is not None and running_var is not None and x.numel() > 0:
        unbiased = var * (sets.count / max(1, sets.count - 1))
        _move(running_mean, mean, momentum)
        _move(running_var, unbiased, momentum)
    return sets.back(y), mean.reshape(sets.stat_shape), rstd.reshape(sets.stat_shape)


def _move(running: Tensor, new: Tensor, momentum: float) -> None:
    """running ← (1 − momentum) running + momentum new, for new (1, C, 1) or (N, C, 1, 1).

    As in PyTorch's own, the version of the tensor stays: a graph of ordinary autograd may have saved it.
    """
    running.data.copy_((1 - momentum) * running + momentum * new.mean(0).reshape(-1))


@op(
    "normalise_relu_forward(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var,"
    " int groups, float momentum, float eps, float slope) -> (Tensor y, Tensor mean, Tensor rstd, Tensor bits)"
)
def normalise_relu_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    groups: int,
    momentum: float,
    eps: float,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """normalise_forward with ReLU (slope 0) or LeakyReLU behind it, and the mask as bits."""
    z, mean, rstd = normalise_forward(x, weight, bias, running_mean, running_var, groups, momentum, eps)
    y, bits = activation.relu_forward(z, None, 0, slope)
    return y, mean, rstd, bits


@op(
    "normalise_vjp(Tensor g, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, int groups, Tensor? bits, float slope)"
    " -> Tensor"
)
def normalise_vjp(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    groups: int,
    bits: Tensor | None,
    slope: float,
) -> Tensor:
    """r P(w g)."""
    sets, x_hat, r, w = _point("normalise_vjp", x, mean, rstd, weight, groups)
    _require_like_x("normalise_vjp", "g", g, x)
    _require_bits("normalise_vjp", bits, x)
    return sets.back(r * sets.projected(w * sets.gated(g, bits, slope), x_hat))


@op(
    "normalise_jvp(Tensor t, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, int groups, Tensor? bits, float slope)"
    " -> Tensor"
)
def normalise_jvp(
    t: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    groups: int,
    bits: Tensor | None,
    slope: float,
) -> Tensor:
    """w r P t."""
    sets, x_hat, r, w = _point("normalise_jvp", x, mean, rstd, weight, groups)
    _require_like_x("normalise_jvp", "t", t, x)
    _require_bits("normalise_jvp", bits, x)
    pushed = sets.back(w * r * sets.projected(sets.spread(t), x_hat))
    return pushed if bits is None else activation.relu_gate(pushed, bits, slope, is_channels_last(x))


@op(
    "normalise_reverse(Tensor? zeta, Tensor[] tangents, Tensor[] cotangents, Tensor x, Tensor mean, Tensor rstd,"
    " Tensor? weight, int groups, Tensor? bits, float slope, bool input_grad, bool param_grads)"
    " -> (Tensor gx, Tensor weight_grad, Tensor bias_grad)"
)
def normalise_reverse(
    zeta: Tensor | None,
    tangents: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    groups: int,
    bits: Tensor | None,
    slope: float,
    input_grad: bool,
    param_grads: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x̄, w̄ and b̄ of ζ (None: zero) and the pairs (t, δ); (0,) for what is not asked for."""
    name = "normalise_reverse"
    sets, x_hat, r, w = _point(name, x, mean, rstd, weight, groups)
    require(
        len(tangents) == len(cotangents),
        f"{name}: needs one cotangent per tangent, got {len(tangents)} tangents and {len(cotangents)} cotangents",
    )
    _require_bits(name, bits, x)
    gx, w_bar, b_bar = (torch.zeros_like(x_hat) for _ in range(3))
    if zeta is not None:
        _require_like_x(name, "zeta", zeta, x)
        b_bar = sets.gated(zeta, bits, slope)
        gx = r * sets.projected(w * b_bar, x_hat)
        w_bar = b_bar * x_hat
    for t, delta in zip(tangents, cotangents, strict=True):
        _require_like_x(name, "tangent", t, x)
        _require_like_x(name, "cotangent", delta, x)
        u, d = sets.spread(t), sets.gated(delta, bits, slope)
        projected = sets.projected(u, x_hat)
        gx = gx - r * r * _curved(sets, w * d, u, projected, x_hat)
        w_bar = w_bar + d * r * projected
    nothing = x_hat.new_empty(0)
    return (
        sets.back(gx) if input_grad else x.new_empty(0),
        sets.to_channels(w_bar) if param_grads else nothing,
        sets.to_channels(b_bar) if param_grads else nothing,
    )


def _curved(sets: _Sets, h: Tensor, t: Tensor, projected: Tensor, x_hat: Tensor) -> Tensor:
    """c x̂ + b P h + a P t: minus the gradient of ⟨h, r P t⟩, over r²."""
    a, b = sets.mean(x_hat * h), sets.mean(x_hat * t)
    c = sets.mean((h - sets.mean(h)) * (t - sets.mean(t))) - a * b
    return c * x_hat + b * sets.projected(h, x_hat) + a * projected


def _sets(op_name: str, x: Tensor, groups: int) -> _Sets:
    require_floating(op_name, "x", x)
    require(x.dim() >= 2, f"{op_name}: x must have shape (N, C, …), got {list(x.shape)}")
    require(
        groups >= 0 and (groups == 0 or x.shape[1] % groups == 0),
        f"{op_name}: groups must be 0 (statistics over the batch) or divide C = {x.shape[1]}, got {groups}",
    )
    return _Sets(x, groups)


def _point(
    op_name: str, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, groups: int
) -> tuple[_Sets, Tensor, Tensor, Tensor | float]:
    """The sets, x̂, r and w, of checked arguments."""
    sets = _sets(op_name, x, groups)
    for name, t in (("mean", mean), ("rstd", rstd)):
        require(
            t.dtype == sets.dtype and t.device == x.device,
            f"{op_name}: {name} must be {str(sets.dtype)[6:]} on x's device {x.device}, "
            f"got {str(t.dtype)[6:]} on {t.device}",
        )
        require_shape(op_name, name, t, sets.stat_shape)
    _require_per_channel(op_name, "weight", weight, x)
    r = sets.statistic(rstd)
    return sets, (sets.spread(x) - sets.statistic(mean)) * r, r, sets.channels(weight)


def _require_per_channel(op_name: str, name: str, t: Tensor | None, x: Tensor) -> None:
    """`t`, if any, must be (C,) and of x's dtype or the accumulation dtype."""
    if t is None:
        return
    wide = accumulation_dtype(x.dtype)
    if t.dtype != wide:
        require_alike(op_name, name, t, "x", x)
    require(t.device == x.device, f"{op_name}: {name} must be on x's device {x.device}, got {t.device}")
    require_shape(op_name, name, t, (x.shape[1],))


def _require_bits(op_name: str, bits: Tensor | None, x: Tensor) -> None:
    """`bits`, if any, must be the mask of a tensor like x."""
    if bits is None:
        return
    require(bits.dtype == torch.uint8, f"{op_name}: bits must have dtype uint8, got {str(bits.dtype)[6:]}")
    require(bits.device == x.device, f"{op_name}: bits must be on x's device {x.device}, got {bits.device}")
    require_shape(op_name, "bits", bits, ((x.numel() + 7) // 8,))


def _require_like_x(op_name: str, name: str, t: Tensor, x: Tensor) -> None:
    require_alike(op_name, name, t, "x", x)
    require_shape(op_name, name, t, x.shape)
